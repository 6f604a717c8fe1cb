//! Commands on strings.

use alloc::vec::Vec;
use core::ops::Deref;

use super::{Call, Error, span};
use crate::number::{ShortText, parse_int};
use crate::store::{Store, Value, buffer};

fn string<'a>(store: &'a mut Store, key: &[u8]) -> Result<Option<&'a mut Vec<u8>>, Error> {
    match store.get(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::Str(text)) => Ok(Some(text)),
        Some(_) => Err(Error::WrongType),
    }
}

fn overwrite(text: &mut Vec<u8>, with: &[u8]) -> Result<(), Error> {
    text.try_reserve(with.len().saturating_sub(text.len())).map_err(|_| Error::OutOfMemory)?;
    text.clear();
    text.extend_from_slice(with);
    Ok(())
}

/// Sets a key to a string, in place if it held one.
fn assign(store: &mut Store, key: &[u8], text: &[u8], expires: Option<u64>) -> Result<(), Error> {
    if let Some(entry) = store.get(key)
        && let Value::Str(old) = &mut entry.value
        && old.capacity() <= 2 * text.len().max(32)
    {
        overwrite(old, text)?;
        if entry.expires != expires {
            store.set_expiry(key, expires);
        }
        return Ok(());
    }
    Ok(store.set(key, Value::Str(buffer(text)?), expires)?)
}

pub(super) fn get(call: &mut Call<'_>) -> Result<(), Error> {
    let text = string(&mut call.engine.store, call.arguments.at(1))?;
    call.reply.bulk_or_null(text.map(|text| &**text));
    Ok(())
}

pub(super) fn mget(call: &mut Call<'_>) -> Result<(), Error> {
    call.reply.array(call.len() - 1);
    for key in call.arguments.from(1) {
        let text = string(&mut call.engine.store, key).unwrap_or(None);
        call.reply.bulk_or_null(text.map(|text| &**text));
    }
    Ok(())
}

/// When a key ends that lives for `amount` units of `milliseconds` from `base` on.
pub(super) fn deadline(amount: i64, milliseconds: i64, base: u64) -> Result<u64, Error> {
    let length = amount.checked_mul(milliseconds).ok_or(Error::ExpireTime)?;
    let end = i64::try_from(base).ok().and_then(|base| base.checked_add(length)).ok_or(Error::ExpireTime)?;
    Ok(u64::try_from(end).unwrap_or(0))
}

/// A word in upper case, as far as any option is long.
fn upper(word: &[u8]) -> impl Deref<Target = [u8]> {
    struct Upper([u8; 8], usize);
    impl Deref for Upper {
        type Target = [u8];
        fn deref(&self) -> &[u8] {
            &self.0[..self.1]
        }
    }
    // A word too long for any option stays empty, which is none either.
    let mut upper = Upper([0; 8], 0);
    if word.len() <= 8 {
        upper.0[..word.len()].copy_from_slice(word);
        upper.0.make_ascii_uppercase();
        upper.1 = word.len();
    }
    upper
}

#[derive(Default)]
struct SetOptions {
    only_new: bool,
    only_old: bool,
    get: bool,
    keep_expiry: bool,
    expires: Option<u64>,
}

impl SetOptions {
    fn read(call: &Call<'_>) -> Result<Self, Error> {
        let mut options = Self::default();
        let mut index = 3;
        let now = call.engine.store.now();
        while index < call.len() {
            match &*upper(call.at(index)) {
                b"NX" if !options.only_old => options.only_new = true,
                b"XX" if !options.only_new => options.only_old = true,
                b"GET" => options.get = true,
                b"KEEPTTL" if options.expires.is_none() => options.keep_expiry = true,
                unit @ (b"EX" | b"PX" | b"EXAT" | b"PXAT")
                    if options.expires.is_none() && !options.keep_expiry && index + 1 < call.len() =>
                {
                    index += 1;
                    let amount = call.int(index)?;
                    if amount <= 0 {
                        return Err(Error::ExpireTime);
                    }
                    let milliseconds = if unit.starts_with(b"E") { 1000 } else { 1 };
                    let base = if unit.ends_with(b"AT") { 0 } else { now };
                    options.expires = Some(deadline(amount, milliseconds, base)?);
                }
                _ => return Err(Error::Syntax),
            }
            index += 1;
        }
        Ok(options)
    }
}

pub(super) fn set(call: &mut Call<'_>) -> Result<(), Error> {
    let (key, text) = (call.at(1), call.at(2));
    if call.len() == 3 {
        assign(call.store(), key, text, None)?;
        return call.ok();
    }
    let options = SetOptions::read(call)?;
    let old = if options.get { string(call.store(), key)?.map(|old| buffer(old)).transpose()? } else { None };
    let (exists, expiry) = match call.store().get(key) {
        Some(entry) => (true, entry.expires),
        None => (false, None),
    };
    let allowed = !(options.only_new && exists || options.only_old && !exists);
    if allowed {
        let expires = if options.keep_expiry { expiry } else { options.expires };
        assign(call.store(), key, text, expires)?;
    }
    match (options.get, allowed) {
        (true, _) => call.reply.bulk_or_null(old.as_deref()),
        (false, true) => call.reply.simple("OK"),
        (false, false) => call.reply.null(),
    }
    Ok(())
}

pub(super) fn setnx(call: &mut Call<'_>) -> Result<(), Error> {
    let (key, text) = (call.at(1), call.at(2));
    let new = call.store().get(key).is_none();
    if new {
        assign(call.store(), key, text, None)?;
    }
    call.reply.int(i64::from(new));
    Ok(())
}

pub(super) fn setex(call: &mut Call<'_>) -> Result<(), Error> {
    let (key, amount, text) = (call.at(1), call.int(2)?, call.at(3));
    if amount <= 0 {
        return Err(Error::ExpireTime);
    }
    let end = deadline(amount, 1000, call.store().now())?;
    assign(call.store(), key, text, Some(end))?;
    call.ok()
}

pub(super) fn getset(call: &mut Call<'_>) -> Result<(), Error> {
    let (key, text) = (call.at(1), call.at(2));
    call.reply.bulk_or_null(string(&mut call.engine.store, key)?.map(|old| &**old));
    assign(call.store(), key, text, None)
}

pub(super) fn getdel(call: &mut Call<'_>) -> Result<(), Error> {
    let key = call.at(1);
    call.reply.bulk_or_null(string(&mut call.engine.store, key)?.map(|old| &**old));
    call.store().remove(key);
    Ok(())
}

pub(super) fn mset(call: &mut Call<'_>) -> Result<(), Error> {
    if call.len().is_multiple_of(2) {
        return Err(Error::Arity);
    }
    for index in (1..call.len()).step_by(2) {
        let (key, text) = (call.at(index), call.at(index + 1));
        assign(call.store(), key, text, None)?;
    }
    call.ok()
}

pub(super) fn strlen(call: &mut Call<'_>) -> Result<(), Error> {
    let len = string(&mut call.engine.store, call.arguments.at(1))?.map_or(0, |text| text.len());
    call.reply.count(len);
    Ok(())
}

pub(super) fn append(call: &mut Call<'_>) -> Result<(), Error> {
    let (key, more) = (call.at(1), call.at(2));
    let len = match string(call.store(), key)? {
        Some(text) => {
            text.try_reserve(more.len()).map_err(|_| Error::OutOfMemory)?;
            text.extend_from_slice(more);
            text.len()
        }
        None => {
            assign(call.store(), key, more, None)?;
            more.len()
        }
    };
    call.reply.count(len);
    Ok(())
}

pub(super) fn getrange(call: &mut Call<'_>) -> Result<(), Error> {
    let (start, stop) = (call.int(2)?, call.int(3)?);
    let text = string(&mut call.engine.store, call.arguments.at(1))?.map_or(&[][..], |text| text);
    call.reply.bulk(&text[span(start, stop, text.len())]);
    Ok(())
}

fn add(call: &mut Call<'_>, step: i64) -> Result<(), Error> {
    let key = call.at(1);
    let value = match string(call.store(), key)? {
        None => {
            assign(call.store(), key, ShortText::int(step).as_bytes(), None)?;
            step
        }
        Some(text) => {
            let old = parse_int(text).ok_or(Error::NotAnInteger)?;
            let value =
                old.checked_add(step).ok_or(Error::Other("ERR increment or decrement would overflow"))?;
            overwrite(text, ShortText::int(value).as_bytes())?;
            value
        }
    };
    call.reply.int(value);
    Ok(())
}

pub(super) fn incr(call: &mut Call<'_>) -> Result<(), Error> {
    add(call, 1)
}

pub(super) fn decr(call: &mut Call<'_>) -> Result<(), Error> {
    add(call, -1)
}

pub(super) fn incrby(call: &mut Call<'_>) -> Result<(), Error> {
    let step = call.int(2)?;
    add(call, step)
}

pub(super) fn decrby(call: &mut Call<'_>) -> Result<(), Error> {
    let step = call.int(2)?.checked_neg().ok_or(Error::Other("ERR decrement would overflow"))?;
    add(call, step)
}
