//! What end-to-end tests stand on: a network namespace and data directory per test, the real kubectl, test
//! images, and a census of the machine that shows what was left behind. Linux, root.

mod background;
mod census;
mod https;
mod image;
mod machine;
mod program;

pub use background::Background;
pub use census::Census;
pub use https::{Https, Lines, Reply};
pub use image::busybox_archive;
pub use machine::Machine;
pub use program::{Output, coracle, kubectl, retry, run, tool};
