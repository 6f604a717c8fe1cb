//! Commands on keys of any type.

use super::strings::deadline;
use super::{Call, Error};
use crate::glob;

pub(super) fn dbsize(call: &mut Call<'_>) -> Result<(), Error> {
    call.reply.count(call.engine.store.len());
    Ok(())
}

pub(super) fn del(call: &mut Call<'_>) -> Result<(), Error> {
    let store = &mut call.engine.store;
    call.reply.count(call.arguments.from(1).filter(|key| store.remove(key).is_some()).count());
    Ok(())
}

pub(super) fn exists(call: &mut Call<'_>) -> Result<(), Error> {
    let store = &mut call.engine.store;
    call.reply.count(call.arguments.from(1).filter(|key| store.get(key).is_some()).count());
    Ok(())
}

pub(super) fn flush(call: &mut Call<'_>) -> Result<(), Error> {
    match call.len() {
        1 => {}
        2 if call.is(1, "sync") || call.is(1, "async") => {}
        _ => return Err(Error::Syntax),
    }
    call.store().clear();
    call.ok()
}

pub(super) fn keys(call: &mut Call<'_>) -> Result<(), Error> {
    let pattern = call.at(1);
    let matching = || call.engine.store.iter().map(|(key, _)| key).filter(|key| glob::matches(pattern, key));
    call.reply.array(matching().count());
    for key in matching() {
        call.reply.bulk(key);
    }
    Ok(())
}

pub(super) fn type_of(call: &mut Call<'_>) -> Result<(), Error> {
    let key = call.at(1);
    let name = call.store().get(key).map_or("none", |entry| entry.value.type_name());
    call.reply.simple(name);
    Ok(())
}

fn expire_in(call: &mut Call<'_>, unit: i64) -> Result<(), Error> {
    let (key, amount) = (call.at(1), call.int(2)?);
    let now = call.store().now();
    let end = deadline(amount, unit, now)?;
    let there = call.store().get(key).is_some();
    if there && end <= now {
        call.store().remove(key);
    } else if there {
        call.store().set_expiry(key, Some(end));
    }
    call.reply.int(i64::from(there));
    Ok(())
}

pub(super) fn expire(call: &mut Call<'_>) -> Result<(), Error> {
    expire_in(call, 1000)
}

pub(super) fn pexpire(call: &mut Call<'_>) -> Result<(), Error> {
    expire_in(call, 1)
}

pub(super) fn persist(call: &mut Call<'_>) -> Result<(), Error> {
    let key = call.at(1);
    let volatile = call.store().get(key).is_some_and(|entry| entry.expires.is_some());
    if volatile {
        call.store().set_expiry(key, None);
    }
    call.reply.int(i64::from(volatile));
    Ok(())
}

fn left(call: &mut Call<'_>, unit: u64) -> Result<(), Error> {
    let key = call.at(1);
    let now = call.store().now();
    let left = match call.store().get(key).map(|entry| entry.expires) {
        None => -2,
        Some(None) => -1,
        Some(Some(end)) => i64::try_from((end.saturating_sub(now) + unit / 2) / unit).unwrap_or(i64::MAX),
    };
    call.reply.int(left);
    Ok(())
}

pub(super) fn ttl(call: &mut Call<'_>) -> Result<(), Error> {
    left(call, 1000)
}

pub(super) fn pttl(call: &mut Call<'_>) -> Result<(), Error> {
    left(call, 1)
}
