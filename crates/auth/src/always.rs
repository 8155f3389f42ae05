//! Authorizers that always say the same.

use crate::user::{Attributes, Authorizer, Decision, NonResourceRule, ResourceRule, UserInfo};

/// Says the same to every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Always {
    /// Everything may be done.
    Allow,
    /// Nothing may be done, unless another authorizer says so.
    Deny,
}

impl Authorizer for Always {
    fn authorize(&self, _: &Attributes) -> (Decision, String) {
        match self {
            Self::Allow => (Decision::Allow, String::new()),
            Self::Deny => (Decision::NoOpinion, "Everything is forbidden.".to_owned()),
        }
    }

    fn rules_for(&self, _: &UserInfo, _: &str) -> (Vec<ResourceRule>, Vec<NonResourceRule>, bool) {
        let all = || vec!["*".to_owned()];
        match self {
            Self::Allow => (
                vec![ResourceRule {
                    verbs: all(),
                    api_groups: all(),
                    resources: all(),
                    ..Default::default()
                }],
                vec![NonResourceRule { verbs: all(), paths: all() }],
                false,
            ),
            Self::Deny => (Vec::new(), Vec::new(), false),
        }
    }
}
