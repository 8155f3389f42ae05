//! End-to-end tests live beside this file, one folder a story; this library is empty.
