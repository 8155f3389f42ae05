//! What a schema in its API form may say, beyond being structural.

use coracle_apiextensions::{Schema, field_path};
use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};

use super::props::{items, kind};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// What is asked of a schema that was acceptable before only as far as it was so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strictness {
    /// Types must be known ones.
    pub(super) types: bool,
    /// Items of sets must be atomic.
    pub(super) atomic_sets: bool,
    /// Keys of keyed lists must be always there.
    pub(super) keys: bool,
}

/// What applies below a certain place.
#[derive(Clone, Default)]
struct Place {
    root: bool,
    /// Why defaults are refused here.
    no_defaults: Option<String>,
    in_meta: bool,
}

/// Checks a whole schema.
pub(super) fn check(props: &JSONSchemaProps, strict: Strictness, at: &Path, errs: &mut ErrorList) {
    let place = Place { root: true, ..Place::default() };
    Walk { strict, errs }.schema(props, at, &place);
}

struct Walk<'e> {
    strict: Strictness,
    errs: &'e mut ErrorList,
}

impl Walk<'_> {
    fn schema(&mut self, props: &JSONSchemaProps, at: &Path, place: &Place) {
        self.standard(props, at, place);
        if props.unique_items == Some(true) {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.errs.forbidden(at.child("uniqueItems"), why);
        }
        self.fields(props, at, place);
        let inner = Place { root: false, ..place.clone() };
        if let Some(not) = &props.not {
            self.schema(not, &at.child("not"), &inner);
        }
        for (word, schemas) in [("allOf", &props.all_of), ("oneOf", &props.one_of), ("anyOf", &props.any_of)]
        {
            for (i, schema) in schemas.iter().flatten().enumerate() {
                self.schema(schema, &at.child(word).index(i), &inner);
            }
        }
        for (name, schema) in props.definitions.iter().flatten() {
            self.schema(schema, &at.child("definitions").key(name), &inner);
        }
        match &props.items {
            Some(JSONSchemaPropsOrArray::Schema(one)) => self.schema(one, &at.child("items"), &inner),
            Some(JSONSchemaPropsOrArray::Schemas(many)) => {
                for (i, schema) in many.iter().enumerate() {
                    self.schema(schema, &at.child("items").index(i), &inner);
                }
            }
            None => {}
        }
        if props.x_kubernetes_preserve_unknown_fields == Some(false) {
            let at = at.child("x-kubernetes-preserve-unknown-fields");
            self.errs.invalid(at, false, "must be true or undefined");
        }
        self.map_type(props, at);
        self.list_type(props, at);
        self.list_map(props, at);
        if self.strict.keys {
            keys(props, at, self.errs);
        }
        for (i, rule) in props.x_kubernetes_validations.iter().flatten().enumerate() {
            self.rule(props, rule, &at.child("x-kubernetes-validations").index(i));
        }
    }

    /// What no custom resource's schema may say at all.
    fn standard(&mut self, props: &JSONSchemaProps, at: &Path, place: &Place) {
        let kind = kind(props);
        if self.strict.types && !kind.is_empty() && !TYPES.contains(&kind) {
            self.errs.not_supported_text(at.child("type"), kind, &TYPES);
        }
        if props.default.as_ref().is_some_and(|d| !d.0.is_null())
            && let Some(why) = &place.no_defaults
        {
            self.errs.forbidden(at.child("default"), format!("must not be set {why}"));
        }
        let mut refuse = |is: bool, name: &str| {
            if is {
                self.errs.forbidden(at.child(name), format!("{name} is not supported"));
            }
        };
        refuse(props.id.as_ref().is_some_and(|id| !id.is_empty()), "id");
        refuse(props.additional_items.is_some(), "additionalItems");
        refuse(props.pattern_properties.as_ref().is_some_and(|m| !m.is_empty()), "patternProperties");
        refuse(props.definitions.as_ref().is_some_and(|m| !m.is_empty()), "definitions");
        refuse(props.dependencies.as_ref().is_some_and(|m| !m.is_empty()), "dependencies");
        refuse(props.ref_path.is_some(), "$ref");
        if kind == "null" {
            let why = "type cannot be set to null, use nullable as an alternative";
            self.errs.forbidden(at.child("type"), why);
        }
        if matches!(&props.items, Some(JSONSchemaPropsOrArray::Schemas(many)) if !many.is_empty()) {
            self.errs.forbidden(at.child("items"), "items must be a schema object and not an array");
        }
        if place.in_meta && props.x_kubernetes_embedded_resource == Some(true) {
            let at = at.child("x-kubernetes-embedded-resource");
            self.errs.forbidden(at, "must not be used inside of resource meta");
        }
    }

    fn fields(&mut self, props: &JSONSchemaProps, at: &Path, place: &Place) {
        let properties = props.properties.as_ref().filter(|map| !map.is_empty());
        if let Some(additional) = &props.additional_properties {
            if properties.is_some() && !matches!(additional, JSONSchemaPropsOrBool::Bool(true)) {
                let why = "additionalProperties and properties are mutual exclusive";
                self.errs.forbidden(at.child("additionalProperties"), why);
            }
            let mut inner = Place { root: false, ..place.clone() };
            if place.in_meta {
                inner.no_defaults = Some("inside additionalProperties applying to object metadata".into());
            }
            if let JSONSchemaPropsOrBool::Schema(schema) = additional {
                self.schema(schema, &at.child("additionalProperties"), &inner);
            }
        }
        for (name, property) in properties.into_iter().flatten() {
            let mut inner = Place { root: false, ..place.clone() };
            let whole = place.root || props.x_kubernetes_embedded_resource == Some(true);
            if whole && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
                inner.in_meta = true;
                if place.root {
                    inner.no_defaults = Some(format!("in top-level {name}"));
                }
            }
            self.schema(property, &at.child("properties").key(name), &inner);
        }
    }

    /// A mark that only schemas of one type may have.
    fn only_for(&mut self, wanted: &str, mark: &str, props: &JSONSchemaProps, at: &Path) -> bool {
        let why = format!("must be {wanted} if {mark} is specified");
        match kind(props) {
            kind if kind == wanted => return true,
            "" => self.errs.required(at.child("type"), why),
            kind => self.errs.invalid(at.child("type"), kind, why),
        }
        false
    }

    fn map_type(&mut self, props: &JSONSchemaProps, at: &Path) {
        const MARK: &str = "x-kubernetes-map-type";
        let Some(map_type) = &props.x_kubernetes_map_type else { return };
        self.only_for("object", MARK, props, at);
        if !matches!(map_type.as_str(), "atomic" | "granular") {
            self.errs.not_supported(at.child(MARK), map_type.as_str(), &["atomic", "granular"]);
        }
    }

    fn list_type(&mut self, props: &JSONSchemaProps, at: &Path) {
        const MARK: &str = "x-kubernetes-list-type";
        let Some(list_type) = &props.x_kubernetes_list_type else { return };
        let is_list = self.only_for("array", MARK, props, at);
        if is_list && self.strict.atomic_sets && is_loose_set(props) {
            let of = items(props);
            let shown = of.and_then(|of| of.x_kubernetes_list_type.clone());
            let mark = if of.is_some_and(|of| kind(of) == "array") { MARK } else { "x-kubernetes-map-type" };
            let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
            self.errs.invalid(at.child("items").child(mark), serde_json::json!(shown), why);
        }
        if !matches!(list_type.as_str(), "atomic" | "set" | "map") {
            self.errs.not_supported(at.child(MARK), list_type.as_str(), &["atomic", "set", "map"]);
        }
    }

    fn list_map(&mut self, props: &JSONSchemaProps, at: &Path) {
        const KEYS: &str = "x-kubernetes-list-map-keys";
        let names = props.x_kubernetes_list_map_keys.as_deref().unwrap_or_default();
        let list_type = props.x_kubernetes_list_type.as_deref();
        if !names.is_empty() {
            let (at, why) =
                (at.child("x-kubernetes-list-type"), format!("must be map if {KEYS} is non-empty"));
            match list_type {
                None => self.errs.required(at, why),
                Some("map") => {}
                Some(other) => self.errs.invalid(at, other, why),
            }
        }
        if list_type != Some("map") {
            return;
        }
        if names.is_empty() {
            let why = "must not be empty if x-kubernetes-list-type is map";
            self.errs.required(at.child(KEYS), why);
        }
        let Some(of) = items(props) else {
            let why = "must have a schema if x-kubernetes-list-type is map";
            return match &props.items {
                None => self.errs.required(at.child("items"), why),
                Some(_) => {
                    let why = "must only have a single schema if x-kubernetes-list-type is map";
                    self.errs.invalid(at.child("items"), serde_json::json!(props.items), why);
                }
            };
        };
        if kind(of) != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            return self.errs.invalid(at.child("items").child("type"), kind(of), why);
        }
        for (i, name) in names.iter().enumerate() {
            match of.properties.as_ref().and_then(|map| map.get(name)) {
                Some(key) if matches!(self::kind(key), "array" | "object") => {
                    let at = at.child("items").child("properties").key(name).child("type");
                    let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                    self.errs.invalid(at, kind(of), why);
                }
                Some(_) => {}
                None => {
                    let why = "entries must all be names of item properties";
                    self.errs.invalid(at.child(KEYS), names.to_vec(), why);
                }
            }
            if names[..i].contains(name) {
                self.errs.invalid(at.child(KEYS), names.to_vec(), "must not contain duplicate entries");
            }
        }
    }

    /// A CEL rule, as far as it is text.
    fn rule(&mut self, props: &JSONSchemaProps, rule: &ValidationRule, at: &Path) {
        let errs = &mut *self.errs;
        let lines = |text: &str| text.contains(['\n', '\r']);
        let message = rule.message.as_deref().unwrap_or("");
        if rule.rule.trim().is_empty() {
            errs.required(at.child("rule"), "rule is not specified");
        } else if !message.is_empty() && message.trim().is_empty() {
            errs.invalid(at.child("message"), message, "must be non-empty if specified");
        } else if lines(message.trim()) {
            errs.invalid(at.child("message"), message, "must not contain line breaks");
        } else if lines(rule.rule.trim()) && message.trim().is_empty() {
            errs.required(at.child("message"), "message must be specified if rule contains line breaks");
        }
        let expression = rule.message_expression.as_deref().unwrap_or("");
        if !expression.is_empty() && expression.trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            errs.required(at.child("messageExpression"), why);
        }
        if let Some(reason) = rule.reason.as_deref().filter(|reason| !REASONS.contains(reason)) {
            errs.not_supported(at.child("reason"), reason, &REASONS);
        }
        let path = rule.field_path.as_deref().unwrap_or("");
        let at = at.child("fieldPath");
        if !path.is_empty() && path.trim().is_empty() {
            errs.invalid(&at, path, "must be non-empty if specified");
        }
        if lines(path) {
            errs.invalid(&at, path, "must not contain line breaks");
        }
        if !path.is_empty()
            && let Ok(schema) = Schema::new(props)
            && field_path::follow(path, &schema, true).is_err()
        {
            errs.invalid(&at, path, "must be a valid path");
        }
    }
}

/// A set whose items are not atomic.
pub(super) fn is_loose_set(props: &JSONSchemaProps) -> bool {
    if props.x_kubernetes_list_type.as_deref() != Some("set") {
        return false;
    }
    let Some(of) = items(props) else { return false };
    match kind(of) {
        "array" => of.x_kubernetes_list_type.as_deref().is_some_and(|t| t != "atomic"),
        "object" => of.x_kubernetes_map_type.as_deref() != Some("atomic"),
        _ => false,
    }
}

/// Items of sets and keyed lists are never null, and keys are always there.
pub(super) fn keys(props: &JSONSchemaProps, at: &Path, errs: &mut ErrorList) {
    let (Some(of), Some(list_type @ ("set" | "map"))) =
        (items(props), props.x_kubernetes_list_type.as_deref())
    else {
        return;
    };
    let at = at.child("items");
    if of.nullable == Some(true) {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errs.forbidden(at.child("nullable"), why);
    }
    if list_type != "map" {
        return;
    }
    for name in props.x_kubernetes_list_map_keys.iter().flatten() {
        let Some(key) = of.properties.as_ref().and_then(|map| map.get(name)) else { continue };
        let at = at.child("properties").key(name);
        let required = of.required.iter().flatten().any(|r| r == name);
        if !required && key.default.as_ref().is_none_or(|d| d.0.is_null()) {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                       property";
            errs.required(at.child("default"), why);
        }
        if key.nullable == Some(true) {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errs.forbidden(at.child("nullable"), why);
        }
    }
}
