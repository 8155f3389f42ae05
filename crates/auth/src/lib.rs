//! Who asks and whether they may: authenticators and authorizers.

pub mod user;

pub use user::{Attributes, AuthnError, Authenticator, Authorizer, Credentials, Decision, UserInfo};
