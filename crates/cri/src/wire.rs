//! The protobuf form of `runtime.v1`, without what only Windows has and without fields that were given up.

mod container;
mod image;
mod runtime;
mod sandbox;
mod stats;

pub(crate) use container::*;
pub(crate) use image::*;
pub(crate) use runtime::*;
pub(crate) use sandbox::*;
pub(crate) use stats::*;
