//! Placeholder docs.

pub mod claim;
mod error;
pub mod paxos;
pub mod record;

pub use claim::{BadId, Claim, Side, Token, Verdict, VmId};
pub use error::Error;
