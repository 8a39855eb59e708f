//! The daemon from outside, on hosts that are network namespaces of the test's own.
//!
//! Needs root and a kernel with XDP and tcx or clsact; without root each test says that it was
//! skipped.

mod hosts;
mod life;
mod moving;
mod recovery;
mod service;
mod strangers;
mod sweep;
