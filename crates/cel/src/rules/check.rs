//! The rules of a definition when it is written: whether they compile and what they may cost.

use std::sync::Arc;

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use serde_json::{Value as Json, json};

use super::{Compiled, Envs, Rule, rules_of};
use crate::escape::escape;
use crate::schema::DeclType;

/// Estimated cost of one rule, at most.
const RULE_LIMIT: u64 = 10_000_000;
/// Estimated cost of all rules of a schema, at most.
const SCHEMA_LIMIT: u64 = 100_000_000;
/// How many of the most expensive rules are named.
const NAMED: usize = 4;

/// Checks the rules of a version's whole schema; to be called when the schema has no other error. `path` is that of
/// the schema (`….openAPIV3Schema`). `lenient` leaves out the limit of single rules, as for definitions that are
/// stored already.
pub fn check(schema: &Json, path: &Path, lenient: bool, errs: &mut ErrorList) {
    let mut checker = Checker { errs, lenient, total: 0, expensive: Vec::new() };
    let place = Place { declared: None, root: true, cardinality: Some(1), uncorrelated: None };
    checker.schema(schema, path, &place);
    let Checker { total, expensive, errs, .. } = checker;
    if total > SCHEMA_LIMIT {
        for (path, _) in expensive {
            errs.forbidden(
                path,
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema",
            );
        }
        let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errs.forbidden(path, exceeded(name, total, SCHEMA_LIMIT));
    }
}

/// Where in a schema a rule stands.
#[derive(Clone)]
struct Place {
    /// The type that an enclosing place with rules gives it.
    declared: Option<Arc<DeclType>>,
    root: bool,
    /// How often the place occurs in a resource at most; `None` for no bound.
    cardinality: Option<u64>,
    /// The list or map within which old and new values cannot be told to belong together.
    uncorrelated: Option<Path>,
}

struct Checker<'a> {
    errs: &'a mut ErrorList,
    lenient: bool,
    total: u64,
    expensive: Vec<(Path, u64)>,
}

impl Checker<'_> {
    fn schema(&mut self, schema: &Json, path: &Path, place: &Place) {
        let mut place = place.clone();
        let rules = rules_of(schema);
        if !rules.is_empty() && place.declared.is_none() {
            let root = place.root || crate::schema::embedded(schema);
            place.declared = DeclType::from_schema(schema, root);
        }
        self.below(schema, path, &place);
        let at = path.child(super::FIELD);
        match (&place.declared, rules.as_slice()) {
            (_, []) => {}
            (Some(declared), rules) => self.rules(rules, declared, &at, &place),
            (None, _) => {
                let why = "internal error: failed to construct type information for x-kubernetes-validations \
                           rules: unable to convert structural schema to CEL declarations";
                self.errs.internal(at, why);
            }
        }
    }

    /// The schemas below, in upstream's order.
    fn below(&mut self, schema: &Json, path: &Path, place: &Place) {
        let cardinality = match (place.cardinality, max_elements(schema)) {
            (Some(outer), Some(inner)) => Some(outer.saturating_mul(inner)),
            _ => None,
        };
        let child = |declared: Option<Arc<DeclType>>, uncorrelated: Option<Path>| Place {
            declared,
            root: false,
            cardinality,
            uncorrelated,
        };
        let declared = place.declared.as_ref();
        let element = declared.and_then(|of| of.element.clone());
        let atomic_map = schema.get("x-kubernetes-map-type").and_then(Json::as_str);
        let map_lost = place.uncorrelated.clone().or_else(|| {
            atomic_map.filter(|kind| !matches!(*kind, "granular" | "atomic")).map(|_| path.clone())
        });
        if let Some(entries) = schema.get("additionalProperties").filter(|entries| entries.is_object()) {
            let place = child(element.clone(), map_lost.clone());
            self.schema(entries, &path.child("additionalProperties"), &place);
        }
        for (name, property) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
            let of = declared.and_then(|of| of.fields.as_ref()?.get(&escape(name)?).cloned());
            let place = child(of, map_lost.clone());
            self.schema(property, &path.child("properties").key(name), &place);
        }
        if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
            let by_keys = schema.get("x-kubernetes-list-type").and_then(Json::as_str) == Some("map");
            let lost = place.uncorrelated.clone().or_else(|| (!by_keys).then(|| path.clone()));
            self.schema(items, &path.child("items"), &child(element, lost));
        }
    }

    fn rules(&mut self, rules: &[Rule<'_>], declared: &Arc<DeclType>, at: &Path, place: &Place) {
        let envs = Envs::new(declared);
        for (i, rule) in rules.iter().enumerate() {
            let compiled = envs.compile(rule);
            let times = place.cardinality.unwrap_or_else(|| declared.max_cardinality());
            self.rule(rule, &compiled, &at.index(i), compiled.max_cost.saturating_mul(times), place);
        }
    }

    fn rule(&mut self, rule: &Rule<'_>, compiled: &Compiled, at: &Path, cost: u64, place: &Place) {
        self.observe(&at.child("rule"), "estimated rule cost", cost);
        if let Some(why) = &compiled.error {
            self.invalid(at.child("rule"), shown(rule), why);
        }
        if let Some(why) = &compiled.message_error {
            self.invalid(at.child("messageExpression"), shown(rule), why);
        } else if compiled.message.is_some() {
            let at = at.child("messageExpression");
            self.observe(&at, "estimated messageExpression cost", compiled.message_max_cost);
        }
        if compiled.uses_old_self {
            if let Some(within) = &place.uncorrelated {
                let why = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"
                );
                self.errs.invalid(at.child("rule"), rule.rule, why);
            }
        } else if let Some(value) = rule.optional_old_self {
            let why = "may not be set if oldSelf is not used in rule";
            self.errs.invalid(at.child("optionalOldSelf"), value, why);
        }
    }

    fn observe(&mut self, at: &Path, name: &str, cost: u64) {
        if !self.lenient && cost > RULE_LIMIT {
            self.errs.forbidden(at, exceeded(name, cost, RULE_LIMIT));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= SCHEMA_LIMIT / 100 {
            self.expensive.push((at.clone(), cost));
            self.expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
            self.expensive.truncate(NAMED);
        }
    }

    fn invalid(&mut self, path: Path, value: String, detail: &str) {
        let path = path.to_string();
        self.errs.push(Error {
            kind: ErrorKind::Invalid,
            path,
            value: Some(value),
            detail: detail.to_owned(),
        });
    }
}

/// How many children a place of this schema has at most.
fn max_elements(schema: &Json) -> Option<u64> {
    let bound = |name: &str| {
        let max = schema.get(name).and_then(Json::as_i64)?;
        Some(u64::try_from(max).unwrap_or(0))
    };
    match schema.get("type").and_then(Json::as_str) {
        Some("object") if schema.get("additionalProperties").is_some() => bound("maxProperties"),
        Some("array") => bound("maxItems"),
        _ => Some(1),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown roughly")]
fn exceeded(name: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let shown = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{name} exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, maxProperties, \
         and maxLength where arrays, maps, and strings are declared)"
    )
}

/// A rule as upstream prints its internal form.
fn shown(rule: &Rule<'_>) -> String {
    let field = |name: &str| rule.json.get(name).cloned().unwrap_or(Json::Null);
    let text = |value: &str| json!(value).to_string();
    let all = format!(
        r#"{{"Rule":{},"Message":{},"MessageExpression":{},"Reason":{},"FieldPath":{},"OptionalOldSelf":{}}}"#,
        text(rule.rule),
        text(rule.message),
        text(rule.message_expression),
        field("reason"),
        text(rule.field_path),
        field("optionalOldSelf"),
    );
    all.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}
