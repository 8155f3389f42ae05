//! Object meta, kinds and resources, quantities, selectors, Status, field errors with paths, the patch and
//! apply algorithms, structural schemas. Pure: no I/O, no async, no clock.

pub mod field;
pub mod object;
pub mod status;

pub use object::{DynamicObject, GroupVersionKind, Kind, Object, ObjectReader};
pub use status::{Reason, Status};
