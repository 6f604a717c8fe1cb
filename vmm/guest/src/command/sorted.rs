//! Commands on sorted sets.

use super::{Call, Error, span};
use crate::number::parse_float;
use crate::store::{Store, Value};
use crate::zset::SortedSet;

fn sorted<'a>(store: &'a mut Store, key: &[u8]) -> Result<Option<&'a mut SortedSet>, Error> {
    match store.get(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::Sorted(sorted)) => Ok(Some(sorted)),
        Some(_) => Err(Error::WrongType),
    }
}

fn or_insert<'a>(store: &'a mut Store, key: &[u8]) -> Result<&'a mut SortedSet, Error> {
    match store.get_or_insert(key, || Value::Sorted(SortedSet::default()))? {
        Value::Sorted(sorted) => Ok(sorted),
        _ => Err(Error::WrongType),
    }
}

#[derive(Default)]
struct AddOptions {
    only_new: bool,
    only_old: bool,
    greater: bool,
    less: bool,
    changed: bool,
    increment: bool,
}

impl AddOptions {
    /// Reads the options; where the scores begin.
    fn read(call: &Call<'_>) -> Result<(Self, usize), Error> {
        let mut options = Self::default();
        let mut index = 2;
        loop {
            let option = match () {
                () if call.is(index, "nx") => &mut options.only_new,
                () if call.is(index, "xx") => &mut options.only_old,
                () if call.is(index, "gt") => &mut options.greater,
                () if call.is(index, "lt") => &mut options.less,
                () if call.is(index, "ch") => &mut options.changed,
                () if call.is(index, "incr") => &mut options.increment,
                () => break,
            };
            *option = true;
            index += 1;
        }
        if options.only_new && options.only_old {
            return Err(Error::Other("ERR XX and NX options at the same time are not compatible"));
        }
        if (options.greater || options.less) && options.only_new || options.greater && options.less {
            return Err(Error::Other("ERR GT, LT, and/or NX options at the same time are not compatible"));
        }
        let rest = call.len() - index.min(call.len());
        if rest == 0 || !rest.is_multiple_of(2) {
            return Err(Error::Syntax);
        }
        if options.increment && rest != 2 {
            return Err(Error::Other("ERR INCR option supports a single increment-element pair"));
        }
        Ok((options, index))
    }

    /// The score a member gets, if it is to be set.
    fn score(&self, old: Option<f64>, given: f64) -> Result<Option<f64>, Error> {
        let score = if self.increment { old.unwrap_or(0.0) + given } else { given };
        if score.is_nan() {
            return Err(Error::Other("ERR resulting score is not a number (NaN)"));
        }
        let wanted = match old {
            None => !self.only_old,
            Some(old) => !(self.only_new || self.greater && score <= old || self.less && score >= old),
        };
        Ok(wanted.then_some(score))
    }
}

fn add(call: &mut Call<'_>, options: &AddOptions, from: usize) -> Result<(), Error> {
    let (key, arguments) = (call.at(1), call.arguments);
    for index in (from..arguments.len()).step_by(2) {
        parse_float(arguments.at(index)).ok_or(Error::NotAFloat)?;
    }
    let sorted = or_insert(call.store(), key)?;
    let (mut added, mut updated, mut last) = (0, 0, None);
    let mut outcome = Ok(());
    for index in (from..arguments.len()).step_by(2) {
        let (given, member) = (parse_float(arguments.at(index)).unwrap_or(0.0), arguments.at(index + 1));
        let old = sorted.score(member);
        outcome = options.score(old, given).and_then(|score| {
            last = score;
            if let Some(score) = score {
                sorted.insert(member, score)?;
                added += usize::from(old.is_none());
                updated += usize::from(old.is_some_and(|old| old != score));
            }
            Ok(())
        });
        if outcome.is_err() {
            break;
        }
    }
    call.store().remove_if_empty(key);
    outcome?;
    match (options.increment, last) {
        (true, Some(score)) => call.reply.float(score),
        (true, None) => call.reply.null(),
        (false, _) => call.reply.count(if options.changed { added + updated } else { added }),
    }
    Ok(())
}

pub(super) fn zadd(call: &mut Call<'_>) -> Result<(), Error> {
    let (options, from) = AddOptions::read(call)?;
    add(call, &options, from)
}

pub(super) fn zincrby(call: &mut Call<'_>) -> Result<(), Error> {
    add(call, &AddOptions { increment: true, ..AddOptions::default() }, 2)
}

pub(super) fn zcard(call: &mut Call<'_>) -> Result<(), Error> {
    let len = sorted(&mut call.engine.store, call.arguments.at(1))?.map_or(0, |sorted| sorted.len());
    call.reply.count(len);
    Ok(())
}

pub(super) fn zscore(call: &mut Call<'_>) -> Result<(), Error> {
    let member = call.at(2);
    match sorted(&mut call.engine.store, call.arguments.at(1))?.and_then(|sorted| sorted.score(member)) {
        Some(score) => call.reply.float(score),
        None => call.reply.null(),
    }
    Ok(())
}

pub(super) fn zrank(call: &mut Call<'_>) -> Result<(), Error> {
    let member = call.at(2);
    match sorted(&mut call.engine.store, call.arguments.at(1))?.and_then(|sorted| sorted.rank(member)) {
        Some(rank) => call.reply.count(rank),
        None => call.reply.null(),
    }
    Ok(())
}

pub(super) fn zrem(call: &mut Call<'_>) -> Result<(), Error> {
    let (key, arguments) = (call.at(1), call.arguments);
    let removed = match sorted(call.store(), key)? {
        None => 0,
        Some(sorted) => arguments.from(2).filter(|member| sorted.remove(member).is_some()).count(),
    };
    call.store().remove_if_empty(key);
    call.reply.count(removed);
    Ok(())
}

/// By rank only.
pub(super) fn zrange(call: &mut Call<'_>) -> Result<(), Error> {
    let (start, stop) = (call.int(2)?, call.int(3)?);
    let with_scores = match call.len() {
        4 => false,
        5 if call.is(4, "withscores") => true,
        _ => return Err(Error::Syntax),
    };
    let Some(sorted) = sorted(&mut call.engine.store, call.arguments.at(1))? else {
        call.reply.array(0);
        return Ok(());
    };
    let range = span(start, stop, sorted.len());
    call.reply.array(range.len() * if with_scores { 2 } else { 1 });
    for (score, member) in sorted.members().skip(range.start).take(range.len()) {
        call.reply.bulk(member);
        if with_scores {
            call.reply.float(*score);
        }
    }
    Ok(())
}

fn pop(call: &mut Call<'_>, highest: bool) -> Result<(), Error> {
    let key = call.at(1);
    let count = call.pop_count()?.unwrap_or(1);
    let Some(sorted) = sorted(&mut call.engine.store, key)? else {
        call.reply.array(0);
        return Ok(());
    };
    let count = count.min(sorted.len());
    call.reply.array(2 * count);
    for _ in 0..count {
        if let Some((score, member)) = sorted.pop(highest) {
            call.reply.bulk(&member);
            call.reply.float(score);
        }
    }
    call.store().remove_if_empty(key);
    Ok(())
}

pub(super) fn zpopmin(call: &mut Call<'_>) -> Result<(), Error> {
    pop(call, false)
}

pub(super) fn zpopmax(call: &mut Call<'_>) -> Result<(), Error> {
    pop(call, true)
}
