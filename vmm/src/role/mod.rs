//! The protocol of a protected pair.
