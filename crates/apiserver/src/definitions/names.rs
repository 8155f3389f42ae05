//! The names that definitions have, by group: what one has, another of its group cannot get. Pure.

use std::collections::{BTreeMap, HashMap};

use coracle_resources::apiextensions::conditions;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionNames,
};

/// What is known of a definition.
struct Has {
    /// The names that it got.
    accepted: CustomResourceDefinitionNames,
    /// It has not all that it wants.
    wants: bool,
}

/// The names of all definitions.
#[derive(Default)]
pub(super) struct Names {
    groups: HashMap<String, BTreeMap<String, Has>>,
    /// The group of each definition.
    of: HashMap<String, String>,
}

impl Names {
    /// Whether a definition of this group is known.
    pub(super) fn has_group(&self, group: &str) -> bool {
        self.groups.contains_key(group)
    }

    /// The names that the others of a group have.
    pub(super) fn beside(&self, name: &str, group: &str) -> Vec<&CustomResourceDefinitionNames> {
        let group = self.groups.get(group).into_iter().flatten();
        group.filter(|(other, _)| *other != name).map(|(_, has)| &has.accepted).collect()
    }

    /// Notes the names of a definition, or that it is gone. Yields the definitions that may now get names which they
    /// were refused before.
    pub(super) fn set(&mut self, name: &str, crd: Option<&CustomResourceDefinition>) -> Vec<String> {
        let Some(crd) = crd else {
            let Some(group) = self.of.remove(name) else { return Vec::new() };
            let Some(of) = self.groups.get_mut(&group) else { return Vec::new() };
            of.remove(name);
            let wanting = wanting(of, name);
            if of.is_empty() {
                self.groups.remove(&group);
            }
            return wanting;
        };
        self.of.insert(name.to_owned(), crd.spec.group.clone());
        let accepted = crd.status.as_ref().and_then(|s| s.accepted_names.clone()).unwrap_or_default();
        let has = Has { accepted, wants: !conditions::is_true(crd, "NamesAccepted") };
        let of = self.groups.entry(crd.spec.group.clone()).or_default();
        let same = of.get(name).is_some_and(|known| known.accepted == has.accepted);
        let is_new = of.insert(name.to_owned(), has).is_none();
        if same || is_new { Vec::new() } else { wanting(of, name) }
    }
}

fn wanting(group: &BTreeMap<String, Has>, but: &str) -> Vec<String> {
    group.iter().filter(|(name, has)| has.wants && *name != but).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn crd(plural: &str, accepted: bool) -> CustomResourceDefinition {
        let names = json!({ "kind": "Thing", "plural": plural });
        let conditions =
            [json!({ "type": "NamesAccepted", "status": if accepted { "True" } else { "False" } })];
        serde_json::from_value(json!({
            "metadata": { "name": format!("{plural}.e.com") },
            "spec": { "group": "e.com", "scope": "Namespaced", "names": names, "versions": [] },
            "status": { "conditions": conditions, "acceptedNames": if accepted { names } else { json!({}) } },
        }))
        .expect("a definition")
    }

    #[test]
    fn who_waits_for_a_name_is_looked_at_again_when_one_is_given_back() {
        let mut names = Names::default();
        assert!(names.set("a.e.com", Some(&crd("a", true))).is_empty());
        assert!(names.set("b.e.com", Some(&crd("b", false))).is_empty());
        assert_eq!(names.beside("b.e.com", "e.com").len(), 1);
        assert!(names.set("a.e.com", Some(&crd("a", true))).is_empty(), "nothing was given back");
        assert_eq!(names.set("a.e.com", None), ["b.e.com"]);
        assert!(names.beside("b.e.com", "e.com").is_empty() && names.has_group("e.com"));
        names.set("b.e.com", None);
        assert!(!names.has_group("e.com"));
    }
}
