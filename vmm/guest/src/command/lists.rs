//! Commands on lists.

use alloc::collections::VecDeque;

use super::{Call, Error, span};
use crate::store::{Bytes, OutOfMemory, Store, Value, bytes};

fn list<'a>(store: &'a mut Store, key: &[u8]) -> Result<Option<&'a mut VecDeque<Bytes>>, Error> {
    match store.get(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::List(list)) => Ok(Some(list)),
        Some(_) => Err(Error::WrongType),
    }
}

/// Which end of a list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Head,
    Tail,
}

impl End {
    fn add(self, list: &mut VecDeque<Bytes>, item: &[u8]) -> Result<(), OutOfMemory> {
        list.try_reserve(1)?;
        let item = bytes(item)?;
        match self {
            Self::Head => list.push_front(item),
            Self::Tail => list.push_back(item),
        }
        Ok(())
    }

    fn take(self, list: &mut VecDeque<Bytes>) -> Option<Bytes> {
        match self {
            Self::Head => list.pop_front(),
            Self::Tail => list.pop_back(),
        }
    }
}

fn push(call: &mut Call<'_>, end: End) -> Result<(), Error> {
    let (key, arguments) = (call.at(1), call.arguments);
    let Value::List(list) = call.store().get_or_insert(key, || Value::List(VecDeque::new()))? else {
        return Err(Error::WrongType);
    };
    for (done, item) in arguments.from(2).enumerate() {
        if let Err(error) = end.add(list, item) {
            // All or nothing.
            (0..done).for_each(|_| drop(end.take(list)));
            call.store().remove_if_empty(key);
            return Err(error.into());
        }
    }
    let len = list.len();
    call.reply.count(len);
    Ok(())
}

pub(super) fn lpush(call: &mut Call<'_>) -> Result<(), Error> {
    push(call, End::Head)
}

pub(super) fn rpush(call: &mut Call<'_>) -> Result<(), Error> {
    push(call, End::Tail)
}

fn pop(call: &mut Call<'_>, end: End) -> Result<(), Error> {
    let key = call.at(1);
    let count = call.pop_count()?;
    let Some(list) = list(&mut call.engine.store, key)? else {
        if count.is_some() {
            call.reply.null_array();
        } else {
            call.reply.null();
        }
        return Ok(());
    };
    if let Some(count) = count {
        call.reply.array(count.min(list.len()));
    }
    for _ in 0..count.unwrap_or(1).min(list.len()) {
        call.reply.bulk_or_null(end.take(list).as_deref());
    }
    call.store().remove_if_empty(key);
    Ok(())
}

pub(super) fn lpop(call: &mut Call<'_>) -> Result<(), Error> {
    pop(call, End::Head)
}

pub(super) fn rpop(call: &mut Call<'_>) -> Result<(), Error> {
    pop(call, End::Tail)
}

pub(super) fn llen(call: &mut Call<'_>) -> Result<(), Error> {
    let len = list(&mut call.engine.store, call.arguments.at(1))?.map_or(0, |list| list.len());
    call.reply.count(len);
    Ok(())
}

pub(super) fn lindex(call: &mut Call<'_>) -> Result<(), Error> {
    let index = call.int(2)?;
    let item = list(&mut call.engine.store, call.arguments.at(1))?.and_then(|list| {
        let size = i64::try_from(list.len()).unwrap_or(i64::MAX);
        let index = if index < 0 { index.saturating_add(size) } else { index };
        list.get(usize::try_from(index).ok()?)
    });
    call.reply.bulk_or_null(item.map(|item| &**item));
    Ok(())
}

pub(super) fn lrange(call: &mut Call<'_>) -> Result<(), Error> {
    let (start, stop) = (call.int(2)?, call.int(3)?);
    let Some(list) = list(&mut call.engine.store, call.arguments.at(1))? else {
        call.reply.array(0);
        return Ok(());
    };
    let range = span(start, stop, list.len());
    call.reply.array(range.len());
    for item in list.range(range) {
        call.reply.bulk(item);
    }
    Ok(())
}
