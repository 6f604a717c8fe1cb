//! Commands on hashes.

use super::{Call, Error};
use crate::number::{ShortText, parse_int};
use crate::store::{Bytes, Map, OutOfMemory, Store, Value, bytes};

fn hash<'a>(store: &'a mut Store, key: &[u8]) -> Result<Option<&'a mut Map<Bytes>>, Error> {
    match store.get(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::Hash(hash)) => Ok(Some(hash)),
        Some(_) => Err(Error::WrongType),
    }
}

fn or_insert<'a>(store: &'a mut Store, key: &[u8]) -> Result<&'a mut Map<Bytes>, Error> {
    match store.get_or_insert(key, || Value::Hash(Map::default()))? {
        Value::Hash(hash) => Ok(hash),
        _ => Err(Error::WrongType),
    }
}

/// Sets a field; whether it is new.
fn insert(hash: &mut Map<Bytes>, field: &[u8], text: &[u8]) -> Result<bool, OutOfMemory> {
    let text = bytes(text)?;
    if let Some(old) = hash.get_mut(field) {
        *old = text;
        return Ok(false);
    }
    hash.try_reserve(1)?;
    hash.insert(bytes(field)?, text);
    Ok(true)
}

fn set_all(call: &mut Call<'_>) -> Result<usize, Error> {
    if !call.len().is_multiple_of(2) {
        return Err(Error::Arity);
    }
    let (key, arguments) = (call.at(1), call.arguments);
    let hash = or_insert(call.store(), key)?;
    let mut added = 0;
    for index in (2..arguments.len()).step_by(2) {
        match insert(hash, arguments.at(index), arguments.at(index + 1)) {
            Ok(new) => added += usize::from(new),
            Err(error) => {
                call.store().remove_if_empty(key);
                return Err(error.into());
            }
        }
    }
    Ok(added)
}

pub(super) fn hset(call: &mut Call<'_>) -> Result<(), Error> {
    let added = set_all(call)?;
    call.reply.count(added);
    Ok(())
}

pub(super) fn hmset(call: &mut Call<'_>) -> Result<(), Error> {
    set_all(call)?;
    call.ok()
}

pub(super) fn hget(call: &mut Call<'_>) -> Result<(), Error> {
    let field = call.at(2);
    let text = hash(&mut call.engine.store, call.arguments.at(1))?.and_then(|hash| hash.get(field));
    call.reply.bulk_or_null(text.map(|text| &**text));
    Ok(())
}

pub(super) fn hmget(call: &mut Call<'_>) -> Result<(), Error> {
    let hash = hash(&mut call.engine.store, call.arguments.at(1))?;
    call.reply.array(call.arguments.len() - 2);
    for field in call.arguments.from(2) {
        let text = hash.as_ref().and_then(|hash| hash.get(field));
        call.reply.bulk_or_null(text.map(|text| &**text));
    }
    Ok(())
}

pub(super) fn hexists(call: &mut Call<'_>) -> Result<(), Error> {
    let field = call.at(2);
    let found =
        hash(&mut call.engine.store, call.arguments.at(1))?.is_some_and(|hash| hash.contains_key(field));
    call.reply.int(i64::from(found));
    Ok(())
}

pub(super) fn hlen(call: &mut Call<'_>) -> Result<(), Error> {
    let len = hash(&mut call.engine.store, call.arguments.at(1))?.map_or(0, |hash| hash.len());
    call.reply.count(len);
    Ok(())
}

pub(super) fn hdel(call: &mut Call<'_>) -> Result<(), Error> {
    let (key, arguments) = (call.at(1), call.arguments);
    let removed = match hash(call.store(), key)? {
        None => 0,
        Some(hash) => arguments.from(2).filter(|field| hash.swap_remove(*field).is_some()).count(),
    };
    call.store().remove_if_empty(key);
    call.reply.count(removed);
    Ok(())
}

fn list(call: &mut Call<'_>, fields: bool, texts: bool) -> Result<(), Error> {
    let Some(hash) = hash(&mut call.engine.store, call.arguments.at(1))? else {
        call.reply.array(0);
        return Ok(());
    };
    call.reply.array(hash.len() * (usize::from(fields) + usize::from(texts)));
    for (field, text) in hash.iter() {
        if fields {
            call.reply.bulk(field);
        }
        if texts {
            call.reply.bulk(text);
        }
    }
    Ok(())
}

pub(super) fn hgetall(call: &mut Call<'_>) -> Result<(), Error> {
    list(call, true, true)
}

pub(super) fn hkeys(call: &mut Call<'_>) -> Result<(), Error> {
    list(call, true, false)
}

pub(super) fn hvals(call: &mut Call<'_>) -> Result<(), Error> {
    list(call, false, true)
}

pub(super) fn hincrby(call: &mut Call<'_>) -> Result<(), Error> {
    let (key, field, step) = (call.at(1), call.at(2), call.int(3)?);
    let old = match hash(call.store(), key)?.and_then(|hash| hash.get(field)) {
        None => 0,
        Some(text) => parse_int(text).ok_or(Error::Other("ERR hash value is not an integer"))?,
    };
    let value = old.checked_add(step).ok_or(Error::Other("ERR increment or decrement would overflow"))?;
    let hash = or_insert(call.store(), key)?;
    let inserted = insert(hash, field, ShortText::int(value).as_bytes());
    call.store().remove_if_empty(key);
    inserted?;
    call.reply.int(value);
    Ok(())
}
