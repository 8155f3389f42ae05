//! Object meta, kinds and resources, quantities, selectors, Status, field errors with paths, the patch and
//! apply algorithms, structural schemas. Pure: no I/O, no async, no clock.

pub mod apply;
pub mod cron;
pub mod direct;
pub mod field;
pub mod go;
pub mod int_or_string;
pub mod names;
pub mod object;
pub mod object_meta;
pub mod owner;
pub mod patch;
pub mod placement;
pub mod pod;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod selector;
pub mod status;

pub use int_or_string::int_or_percent;
pub use object::{DynamicObject, GroupVersionKind, Kind, Object, ObjectReader};
pub use status::{Reason, Status};
