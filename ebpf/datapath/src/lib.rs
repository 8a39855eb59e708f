//! What to do with one packet, and the bytes shared with the kernel.

#![no_std]

pub mod abi;
