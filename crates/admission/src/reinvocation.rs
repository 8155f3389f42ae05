//! The second round of mutation: plugins run again when a webhook or policy has changed the object, so that
//! those before it see what it did.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What has been asked so far, and what is to be asked again.
#[derive(Clone, Debug, Default)]
pub struct Reinvocation {
    /// 0, or 1 while plugins run again.
    pub round: u32,
    /// A second round is wanted.
    pub again: bool,
    plugins: BTreeMap<&'static str, State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Asked, and willing to be asked again.
    invoked: BTreeSet<String>,
    /// To be asked again.
    wanted: BTreeSet<String>,
    /// The object as the plugin left it.
    output: Option<Value>,
}

impl Reinvocation {
    /// Notes that `uid` was asked and may be asked again.
    pub fn invoked(&mut self, plugin: &'static str, uid: &str) {
        self.plugins.entry(plugin).or_default().invoked.insert(uid.to_owned());
    }

    /// The object has changed: all that were asked before are to be asked again.
    pub fn require(&mut self, plugin: &'static str) {
        let state = self.plugins.entry(plugin).or_default();
        let invoked = std::mem::take(&mut state.invoked);
        state.wanted.extend(invoked);
    }

    /// Whether `uid` is to be asked again.
    pub fn wants(&self, plugin: &str, uid: &str) -> bool {
        self.plugins.get(plugin).is_some_and(|state| state.wanted.contains(uid))
    }

    /// Notes the object as the plugin leaves it.
    pub fn output(&mut self, plugin: &'static str, object: Option<Value>) {
        self.plugins.entry(plugin).or_default().output = object;
    }

    /// Whether the object is another one than the plugin left.
    pub fn changed_since(&self, plugin: &str, object: Option<&Value>) -> bool {
        self.plugins.get(plugin).and_then(|state| state.output.as_ref()) != object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_before_a_change_is_asked_again() {
        let mut state = Reinvocation::default();
        state.invoked("p", "first");
        state.require("p");
        state.invoked("p", "second");
        assert!(state.wants("p", "first"));
        assert!(!state.wants("p", "second"));
        assert!(!state.wants("q", "first"));
    }
}
