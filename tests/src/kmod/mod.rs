//! What the kernel module is tried with: a tiny VM whose guest executes nothing but the instructions in question.

pub mod guest;
mod histograms;
pub mod misuse;
mod random_numbers;
pub mod storm;
pub mod trials;
pub mod vm;
