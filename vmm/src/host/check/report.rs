//! What `tandem check` found, as lines and as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

/// All findings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Whether everything that is needed works.
    pub ok: bool,
    /// Whether the embedded guest can run here.
    pub embedded_guest: bool,
    /// Whether Linux guests can run here.
    pub linux_guests: bool,
    /// One finding a line, in the order they were looked at.
    pub items: Vec<Item>,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// What was looked at.
    pub item: String,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// How to get what is missing, where there is a way.
    pub remedy: Option<String>,
}

/// How an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It works.
    Ok,
    /// It is missing or could be better, and is not needed for what was asked about.
    Note,
    /// It is missing and needed.
    Fail,
}

impl Report {
    /// Whether everything that is needed works.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.ok
    }

    pub(super) fn add(&mut self, item: Item) {
        self.items.push(item);
    }
}

impl Item {
    pub(super) fn ok(item: &str, found: impl Into<String>) -> Self {
        Self { item: item.to_owned(), state: State::Ok, found: found.into(), remedy: None }
    }

    pub(super) fn note(item: &str, found: impl Into<String>) -> Self {
        Self { state: State::Note, ..Self::ok(item, found) }
    }

    pub(super) fn fail(item: &str, found: impl Into<String>) -> Self {
        Self { state: State::Fail, ..Self::ok(item, found) }
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.items.iter().try_for_each(|item| writeln!(f, "{item}"))
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok  ",
            State::Note => "note",
            State::Fail => "FAIL",
        };
        write!(f, "{state}  {:<16}  {}", self.item, self.found)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}
