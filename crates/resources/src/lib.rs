//! One file per built-in kind: names, scope, defaulting, validation, update rules, columns, selectable
//! fields. Discovery, OpenAPI, tables, short names and garbage-collection lists are derived from [`all`].

pub mod def;
