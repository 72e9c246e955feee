//! What goes wrong around the product: links, clocks, disks.
//!
//! Each fault is made by the kernel or by a library from outside, never by the
//! product itself, and ends with its value.

pub mod clock;
pub mod disk;
pub mod link;
