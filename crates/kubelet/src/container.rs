//! From a container's specification to what the runtime is told.

pub mod config;
pub mod dns;
pub mod env;
mod env_file;
pub mod expand;
pub mod fields;
pub mod hosts;
pub mod resources;
pub mod sandbox;
pub mod security;
