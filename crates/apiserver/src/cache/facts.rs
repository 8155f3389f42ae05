//! What selectors look at, in as little memory as it takes: a cache has it for every object, decoded or not.

use coracle_meta::Object;
use coracle_resources::def::ResourceDef;

/// Labels and selectable fields of an object. Neither holds a NUL: labels and fields are checked when they are written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Each label's and then each field's name and value, each ended by a NUL.
    text: Box<str>,
    /// Where the fields begin.
    fields: usize,
}

impl Facts {
    /// Those of an object.
    pub(crate) fn of(def: &ResourceDef, obj: &dyn Object) -> Self {
        let mut text = String::new();
        for (name, value) in obj.meta().labels.iter().flatten() {
            push(&mut text, name, value);
        }
        let fields = text.len();
        for (path, value) in def.strategy.selectable(obj) {
            push(&mut text, path, &value);
        }
        Self { text: text.into_boxed_str(), fields }
    }

    /// A label's value.
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        find(self.text.get(..self.fields)?, name)
    }

    /// The value of a selectable field beside name and namespace.
    pub(crate) fn field(&self, path: &str) -> Option<&str> {
        find(self.text.get(self.fields..)?, path)
    }
}

fn push(text: &mut String, name: &str, value: &str) {
    for part in [name, value] {
        text.extend(part.chars().filter(|c| *c != '\0'));
        text.push('\0');
    }
}

fn find<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut parts = text.split_terminator('\0');
    while let (Some(found), Some(value)) = (parts.next(), parts.next()) {
        if found == name {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use coracle_meta::Kind;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn facts<K: Kind>(group: &str, plural: &str, value: serde_json::Value) -> Facts {
        let obj: K = serde_json::from_value(value).expect("an object");
        Facts::of(coracle_resources::find(group, plural).expect("a kind"), &obj)
    }

    #[test]
    fn a_label_and_a_field_of_one_name_are_two_things_and_empty_values_are_there() {
        let pod = json!({ "metadata": { "name": "p", "labels": { "app": "", "spec.nodeName": "label" } },
            "spec": { "nodeName": "n-1", "containers": [] }, "status": { "phase": "Running" } });
        let facts = facts::<Pod>("", "pods", pod);
        assert_eq!(
            (facts.label("app"), facts.label("spec.nodeName"), facts.label("ap")),
            (Some(""), Some("label"), None)
        );
        assert_eq!(
            (facts.field("spec.nodeName"), facts.field("status.phase")),
            (Some("n-1"), Some("Running"))
        );
        assert_eq!((facts.field("app"), facts.label("status.phase")), (None, None));
    }

    #[test]
    fn an_object_without_labels_has_none() {
        let facts = facts::<Pod>("", "pods", json!({ "metadata": {}, "spec": { "containers": [] } }));
        assert_eq!(facts.label(""), None);
        assert_eq!(Facts::default().field("spec.nodeName"), None);
    }
}
