//! Controller runtime and controllers.
