//! Reading one table of a config file, key by key, with every mistake collected.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;

use toml::de::{DeTable, DeValue};

use super::problem::{Problem, line_of, nearest};

/// Mistakes found so far, by byte offset in the text.
pub(super) struct Problems<'t> {
    text: &'t str,
    found: Vec<(usize, Problem)>,
}

impl<'t> Problems<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, found: Vec::new() }
    }

    /// Records a mistake at `span`.
    pub(super) fn add(&mut self, span: &Range<usize>, key: impl Into<String>, message: impl Into<String>) {
        let problem =
            Problem { line: line_of(self.text, span.start), key: key.into(), message: message.into() };
        self.found.push((span.start, problem));
    }

    /// All mistakes in file order.
    pub(super) fn into_sorted(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|(offset, _)| *offset);
        self.found.into_iter().map(|(_, problem)| problem).collect()
    }
}

/// A value with the place it came from.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
    pub(super) key: String,
}

/// One table: the whole file, `[machine]`, one `[[net]]` ….
pub(super) struct Section<'s> {
    path: String,
    table: Option<&'s DeTable<'s>>,
    span: Range<usize>,
}

impl<'s> Section<'s> {
    pub(super) fn root(table: &'s DeTable<'s>) -> Self {
        Self { path: String::new(), table: Some(table), span: 0..0 }
    }

    /// The full name of a key of this section.
    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn value(&self, name: &str) -> Option<(&'s DeValue<'s>, Range<usize>)> {
        let value = self.table?.get(name)?;
        Some((value.get_ref(), value.span()))
    }

    /// A sub-table; an absent one reads as empty, so that all its defaults apply.
    pub(super) fn table(&self, name: &str, problems: &mut Problems<'_>) -> Section<'s> {
        self.optional_table(name, problems).unwrap_or(Section {
            path: self.key(name),
            table: None,
            span: self.span.clone(),
        })
    }

    /// A sub-table, `None` when the file has none of that name.
    pub(super) fn optional_table(&self, name: &str, problems: &mut Problems<'_>) -> Option<Section<'s>> {
        let (value, span) = self.value(name)?;
        let path = self.key(name);
        let table = value.as_table();
        if table.is_none() {
            problems.add(&span, &path, format!("expected a section [{name}], found {}", kind(value)));
        }
        Some(Section { path, table, span })
    }

    /// The tables of an array, `[[name]]`, at most `most` of them.
    pub(super) fn tables(&self, name: &str, most: usize, problems: &mut Problems<'_>) -> Vec<Section<'s>> {
        let Some((value, span)) = self.value(name) else { return Vec::new() };
        let Some(array) = value.as_array() else {
            let message = format!("expected [[{name}]] with double brackets, found {}", kind(value));
            problems.add(&span, self.key(name), message);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in array.iter().enumerate() {
            let path = format!("{}[{index}]", self.key(name));
            if index == most {
                problems.add(&item.span(), &path, format!("too many: at most {most} are possible"));
                break;
            }
            match item.get_ref().as_table() {
                Some(table) => sections.push(Section { path, table: Some(table), span: item.span() }),
                None => {
                    let message = format!("expected a section [[{name}]], found {}", kind(item.get_ref()));
                    problems.add(&item.span(), path, message);
                }
            }
        }
        sections
    }

    /// A string, `None` when absent.
    pub(super) fn string(&self, name: &str, problems: &mut Problems<'_>) -> Option<At<&'s str>> {
        let (value, span) = self.value(name)?;
        let key = self.key(name);
        match value.as_str() {
            Some(value) => Some(At { value, span, key }),
            None => {
                problems.add(&span, key, format!("expected a string in quotes, found {}", kind(value)));
                None
            }
        }
    }

    /// A string that must be there.
    pub(super) fn required_string(&self, name: &str, problems: &mut Problems<'_>) -> Option<At<&'s str>> {
        if self.value(name).is_none() {
            problems.add(&self.span, self.key(name), "missing: it has no default");
            return None;
        }
        self.string(name, problems)
    }

    /// A string that must be there and parse as a `T`.
    pub(super) fn required_parsed<T>(&self, name: &str, problems: &mut Problems<'_>) -> Option<At<T>>
    where
        T: FromStr,
        T::Err: Display,
    {
        let At { value, span, key } = self.required_string(name, problems)?;
        match value.parse() {
            Ok(value) => Some(At { value, span, key }),
            Err(error) => {
                problems.add(&span, key, format!("{value:?}: {error}"));
                None
            }
        }
    }

    /// An integer within `range`, or the default when absent or wrong.
    pub(super) fn integer(
        &self,
        name: &str,
        default: u64,
        range: RangeInclusive<u64>,
        problems: &mut Problems<'_>,
    ) -> u64 {
        let Some((value, span)) = self.value(name) else { return default };
        let key = self.key(name);
        let Some(integer) = value.as_integer() else {
            problems.add(&span, key, format!("expected a whole number, found {}", kind(value)));
            return default;
        };
        match i128::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if u64::try_from(number).is_ok_and(|number| range.contains(&number)) => number as u64,
            _ => {
                let (low, high) = range.into_inner();
                let message = format!("{} is out of range: {low} to {high}", integer.as_str());
                problems.add(&span, key, message);
                default
            }
        }
    }

    /// `true` or `false`, or the default when absent or wrong.
    pub(super) fn boolean(&self, name: &str, default: bool, problems: &mut Problems<'_>) -> bool {
        let Some((value, span)) = self.value(name) else { return default };
        value.as_bool().unwrap_or_else(|| {
            problems.add(&span, self.key(name), format!("expected true or false, found {}", kind(value)));
            default
        })
    }

    /// Reports every key of this section that is not in `known`. `elsewhere` lists the keys of all
    /// sections, for a key that stands in the wrong one.
    pub(super) fn deny_unknown(
        &self,
        known: &[&str],
        elsewhere: &[(&str, &[&str])],
        problems: &mut Problems<'_>,
    ) {
        let Some(table) = self.table else { return };
        for name in table.keys() {
            let written: &str = name.get_ref();
            if known.contains(&written) {
                continue;
            }
            let home = elsewhere.iter().find(|(_, keys)| keys.contains(&written)).map(|(section, _)| section);
            let message = match (home, nearest(written, known.iter().copied())) {
                (Some(&""), _) => "unknown key here; it belongs above the first section".to_owned(),
                (Some(section), _) => format!("unknown key here; it belongs in {section}"),
                (None, Some(near)) => format!("unknown key; did you mean `{near}`?"),
                (None, None) => format!("unknown key; known here: {}", known.join(", ")),
            };
            problems.add(&name.span(), self.key(written), message);
        }
    }
}

/// What a value is, with its article.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}
