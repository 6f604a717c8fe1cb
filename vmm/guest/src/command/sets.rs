//! Commands on sets.

use super::{Call, Error};
use crate::store::{OutOfMemory, Set, Store, Value, bytes};

fn set<'a>(store: &'a mut Store, key: &[u8]) -> Result<Option<&'a mut Set>, Error> {
    match store.get(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::Set(set)) => Ok(Some(set)),
        Some(_) => Err(Error::WrongType),
    }
}

fn insert(set: &mut Set, member: &[u8]) -> Result<bool, OutOfMemory> {
    if set.contains(member) {
        return Ok(false);
    }
    set.try_reserve(1)?;
    Ok(set.insert(bytes(member)?))
}

pub(super) fn sadd(call: &mut Call<'_>) -> Result<(), Error> {
    let (key, arguments) = (call.at(1), call.arguments);
    let Value::Set(set) = call.store().get_or_insert(key, || Value::Set(Set::default()))? else {
        return Err(Error::WrongType);
    };
    let mut added = 0;
    for member in arguments.from(2) {
        match insert(set, member) {
            Ok(new) => added += usize::from(new),
            Err(error) => {
                // All or nothing: what was added is at the end.
                (0..added).for_each(|_| drop(set.pop()));
                call.store().remove_if_empty(key);
                return Err(error.into());
            }
        }
    }
    call.reply.count(added);
    Ok(())
}

pub(super) fn srem(call: &mut Call<'_>) -> Result<(), Error> {
    let (key, arguments) = (call.at(1), call.arguments);
    let removed = match set(call.store(), key)? {
        None => 0,
        Some(set) => arguments.from(2).filter(|member| set.swap_remove(*member)).count(),
    };
    call.store().remove_if_empty(key);
    call.reply.count(removed);
    Ok(())
}

pub(super) fn scard(call: &mut Call<'_>) -> Result<(), Error> {
    let len = set(&mut call.engine.store, call.arguments.at(1))?.map_or(0, |set| set.len());
    call.reply.count(len);
    Ok(())
}

pub(super) fn sismember(call: &mut Call<'_>) -> Result<(), Error> {
    let member = call.at(2);
    let found = set(&mut call.engine.store, call.arguments.at(1))?.is_some_and(|set| set.contains(member));
    call.reply.int(i64::from(found));
    Ok(())
}

pub(super) fn smembers(call: &mut Call<'_>) -> Result<(), Error> {
    let Some(set) = set(&mut call.engine.store, call.arguments.at(1))? else {
        call.reply.array(0);
        return Ok(());
    };
    call.reply.array(set.len());
    for member in set.iter() {
        call.reply.bulk(member);
    }
    Ok(())
}

/// Takes the newest members: any will do, and these cost least.
pub(super) fn spop(call: &mut Call<'_>) -> Result<(), Error> {
    let key = call.at(1);
    let count = call.pop_count()?;
    let Some(set) = set(&mut call.engine.store, key)? else {
        if count.is_some() {
            call.reply.array(0);
        } else {
            call.reply.null();
        }
        return Ok(());
    };
    if let Some(count) = count {
        call.reply.array(count.min(set.len()));
    }
    for _ in 0..count.unwrap_or(1).min(set.len()) {
        call.reply.bulk_or_null(set.pop().as_deref());
    }
    call.store().remove_if_empty(key);
    Ok(())
}
