//! Record and replay.
//!
//! A recorder applies inputs to the machine and logs each with the position at which it took effect; a
//! player applies the logged inputs at the same positions. In between, both machines compute the same.

/// One batch of the log and its entries: the log's vocabulary.
pub mod batch;

/// Builds batches as a machine runs.
pub mod builder;

/// Values of captured instructions, for a follower.
pub mod captured;

/// One logged input.
pub mod entry;

/// Where and how a replay differed from what was recorded.
pub mod divergence;

/// Follows a log.
pub mod follower;

/// Pages that the guest writes again and again.
pub mod hot_pages;

/// Sums of guest memory, fine enough to name the place of a difference.
pub mod memory_sum;

/// Which batch of the log an output waits for.
pub mod output_commit;

/// What a recorder needs of the outside.
pub mod outside;

/// Time limits of a recorder.
pub mod pace;

/// Plays batches back, in place.
pub mod player;

/// When an input takes effect.
pub mod position;

/// Records a run.
pub mod recorder;

/// The loop that drives a machine from exit to exit.
pub mod run;

/// What was last shipped of the pages of forced stops.
pub mod shipped;

/// Forced stops: the state that is shipped when the guest computes without an exit.
pub mod stop;

/// How often forced stops may be made.
pub mod stop_pace;

/// The record of every exit, for verification.
pub mod trace;
