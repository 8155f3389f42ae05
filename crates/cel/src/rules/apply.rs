//! The rules applied to resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path, show};
use serde_json::Value as Json;

use super::{Compiled, Envs, Rule, path, rules_of};
use crate::escape::escape;
use crate::eval::{Activation, PER_CALL_LIMIT};
use crate::schema::{DeclType, embedded, rooted, to_value};
use crate::value::{Fault, Value};

/// What all rules of a resource may cost together.
pub const RUNTIME_BUDGET: i64 = 10_000_000;
/// Bytes of a message that an expression makes.
const MAX_MESSAGE: usize = 5 * 1024;

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// The compiled rules of a schema and of what is below it.
#[derive(Debug)]
pub struct Rules {
    /// The schema here; of a whole resource, with what every resource has.
    schema: Json,
    rules: Vec<Applied>,
    /// Rules of `allOf`, which apply here too.
    all_of: Vec<Rules>,
    properties: BTreeMap<String, Rules>,
    additional: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
}

#[derive(Debug)]
struct Applied {
    compiled: Compiled,
    rule: String,
    message: String,
    message_expression: String,
    reason: Option<String>,
    optional_old_self: bool,
    /// Where errors are reported, below the place of the rule.
    field_path: String,
}

/// Data with what it was before, where they belong together.
#[derive(Clone, Copy, Default)]
struct Correlation<'d> {
    here: Option<(&'d Json, &'d Json)>,
    /// Of the nearest place around that has one.
    around: Option<(&'d Json, &'d Json)>,
}

impl<'d> Correlation<'d> {
    fn unchanged(self) -> bool {
        let pair = if self.here.is_some() { self.here } else { self.around };
        pair.is_some_and(|(new, old)| new == old)
    }

    fn child(self, pair: Option<(&'d Json, &'d Json)>) -> Self {
        match self.here {
            None => self,
            Some(_) => Self { here: pair, around: self.here },
        }
    }
}

/// What is being checked and what came of it so far.
struct Run<'r> {
    errs: &'r mut ErrorList,
    warnings: &'r mut Vec<String>,
    budget: i64,
}

impl Rules {
    /// The rules of a version's schema; `None` if it has none.
    pub fn new(schema: &Json) -> Option<Self> {
        if !has_rules(schema) {
            return None;
        }
        Self::compile(schema, schema, true, DeclType::from_schema(schema, true).as_ref())
    }

    /// `rules` is where the rules are, `schema` what the place is.
    fn compile(rules: &Json, schema: &Json, root: bool, declared: Option<&Arc<DeclType>>) -> Option<Self> {
        let own = rules_of(rules);
        let envs = declared.filter(|_| !own.is_empty()).map(Envs::new);
        let applied: Vec<Applied> = match &envs {
            Some(envs) => own.iter().map(|rule| Applied::new(envs.compile(rule), rule, schema)).collect(),
            None => Vec::new(),
        };
        let element = declared.and_then(|of| of.element.as_ref());
        let part = |name: &str| rules.get(name).zip(schema.get(name)).filter(|(_, s)| s.is_object());
        let items = part("items").and_then(|(r, s)| Self::compile(r, s, embedded(s), element)).map(Box::new);
        let additional = part("additionalProperties")
            .and_then(|(r, s)| Self::compile(r, s, embedded(s), element))
            .map(Box::new);
        let mut properties = BTreeMap::new();
        for (name, rules) in rules.get("properties").and_then(Json::as_object).into_iter().flatten() {
            let Some(schema) = schema.get("properties").and_then(|of| of.get(name)) else { continue };
            let of = match escape(name) {
                Some(name) => declared.and_then(|of| of.fields.as_ref()?.get(&name).cloned()),
                None => DeclType::from_schema(schema, embedded(schema)),
            };
            let compiled = of.and_then(|of| Self::compile(rules, schema, embedded(schema), Some(&of)));
            if let Some(compiled) = compiled {
                properties.insert(name.clone(), compiled);
            }
        }
        let all_of = rules.get("allOf").and_then(Json::as_array).into_iter().flatten();
        let all_of: Vec<Self> =
            all_of.filter_map(|part| Self::compile(part, schema, root, declared)).collect();
        let empty = applied.is_empty() && all_of.is_empty() && properties.is_empty();
        if empty && items.is_none() && additional.is_none() {
            return None;
        }
        let schema = if root { rooted(schema) } else { schema.clone() };
        Some(Self { schema, rules: applied, all_of, properties, additional, items })
    }

    /// Applies the rules to a resource; `old` is what it was before an update. Errors at what the update did not
    /// change become warnings, unless the rule looks at `oldSelf`.
    pub fn validate(&self, new: &Json, old: Option<&Json>, errs: &mut ErrorList, warnings: &mut Vec<String>) {
        let mut run = Run { errs, warnings, budget: RUNTIME_BUDGET };
        let value = to_value(new, &self.schema);
        let old_value = old.map(|old| to_value(old, &self.schema));
        let correlation = Correlation { here: old.map(|old| (new, old)), around: None };
        self.place(&mut run, &Path::new(""), (new, &value), (old, old_value.as_ref()), correlation);
    }

    fn place<'d>(
        &self,
        run: &mut Run<'_>,
        path: &Path,
        new: (&'d Json, &Value),
        old: (Option<&'d Json>, Option<&Value>),
        correlation: Correlation<'d>,
    ) {
        if new.0.is_null() {
            return;
        }
        let previous = old.1.filter(|_| !old.0.is_none_or(Json::is_null));
        if !self.rules.is_empty() {
            self.expressions(run, path, new, previous, correlation);
        }
        for part in &self.all_of {
            if run.budget < 0 {
                return;
            }
            let around = Correlation { here: None, around: correlation.around };
            part.place(run, path, new, old, around);
        }
        match new.0 {
            Json::Array(items) => self.elements(run, path, items, new.1, old, correlation),
            Json::Object(entries) => {
                for (key, data) in entries {
                    if run.budget < 0 {
                        return;
                    }
                    self.entry(run, path, (key, data), new.1, old, correlation);
                }
            }
            _ => {}
        }
    }

    fn entry<'d>(
        &self,
        run: &mut Run<'_>,
        path: &Path,
        (key, data): (&str, &'d Json),
        within: &Value,
        old: (Option<&'d Json>, Option<&Value>),
        correlation: Correlation<'d>,
    ) {
        let (rules, at) = match (self.properties.get(key), &self.additional) {
            (Some(rules), _) => (rules, path.child(key)),
            (None, Some(rules)) => (&**rules, path.key(key)),
            _ => return,
        };
        let map_type = self.schema.get("x-kubernetes-map-type").and_then(Json::as_str);
        let correlatable = map_type.is_none_or(|kind| matches!(kind, "granular" | "atomic"));
        let before = old.0.filter(|_| correlatable).and_then(|old| old.get(key));
        let value = child_value(within, key, data, &rules.schema);
        let old_value = before.map(|before| match old.1 {
            Some(old) => child_value(old, key, before, &rules.schema),
            None => to_value(before, &rules.schema),
        });
        let top = correlation.around.is_none() && matches!(key, "apiVersion" | "kind");
        let next = if top && correlation.here.is_some() {
            Correlation::default()
        } else {
            let pair = correlation.here.and_then(|(new, old)| new.get(key).zip(old.get(key)));
            correlation.child(pair)
        };
        rules.place(run, &at, (data, &value), (before, old_value.as_ref()), next);
    }

    fn elements<'d>(
        &self,
        run: &mut Run<'_>,
        path: &Path,
        items: &'d [Json],
        within: &Value,
        old: (Option<&'d Json>, Option<&Value>),
        correlation: Correlation<'d>,
    ) {
        let Some(rules) = &self.items else { return };
        let keys = self.list_keys();
        let before: &[Json] = old.0.and_then(Json::as_array).map_or(&[], Vec::as_slice);
        let same = |list: &'d [Json], item: &Json| -> Option<&'d Json> {
            let keys = keys.as_ref()?;
            let of = |item: &Json| keys.iter().map(|key| item.get(key).cloned()).collect::<Option<Vec<_>>>();
            let wanted = of(item)?;
            list.iter().find(|other| of(other).is_some_and(|found| found == wanted))
        };
        for (i, data) in items.iter().enumerate() {
            if run.budget < 0 {
                return;
            }
            let value = match within {
                Value::List(list) => list.get(i as u64).cloned(),
                _ => None,
            };
            let value = value.unwrap_or_else(|| to_value(data, &rules.schema));
            let matching = same(before, data);
            let old_value = matching.map(|before| to_value(before, &rules.schema));
            let pair = correlation.here.and_then(|(_, old)| {
                let old = old.as_array()?;
                same(old, data).map(|old| (data, old))
            });
            let next = correlation.child(pair);
            rules.place(run, &path.index(i), (data, &value), (matching, old_value.as_ref()), next);
        }
    }

    fn list_keys(&self) -> Option<Vec<&str>> {
        if self.schema.get("x-kubernetes-list-type")?.as_str()? != "map" {
            return None;
        }
        let keys = self.schema.get("x-kubernetes-list-map-keys")?.as_array()?;
        Some(keys.iter().filter_map(Json::as_str).collect()).filter(|keys: &Vec<&str>| !keys.is_empty())
    }

    fn expressions(
        &self,
        run: &mut Run<'_>,
        path: &Path,
        (data, value): (&Json, &Value),
        old: Option<&Value>,
        correlation: Correlation<'_>,
    ) {
        let kind = self.schema.get("type").and_then(Json::as_str).unwrap_or("");
        let invalid = |run: &mut Run<'_>, detail: String| run.errs.invalid(path, kind, detail);
        if run.budget <= 0 {
            invalid(run, OUT_OF_BUDGET.to_owned());
            run.budget = -1;
            return;
        }
        for rule in &self.rules {
            if let Some(why) = &rule.compiled.error {
                invalid(run, format!("rule compile error: {why}"));
                continue;
            }
            let Some(program) = &rule.compiled.program else { continue };
            if rule.compiled.uses_old_self && old.is_none() && !rule.optional_old_self {
                continue;
            }
            let scope = Scope { new: value, old, optional: rule.optional_old_self };
            let outcome = program.eval(&scope, PER_CALL_LIMIT);
            let cost = i64::try_from(outcome.cost).unwrap_or(i64::MAX);
            if cost > run.budget {
                invalid(run, OUT_OF_BUDGET.to_owned());
                run.budget = -1;
                return;
            }
            run.budget -= cost;
            match outcome.result {
                Ok(Value::Bool(true)) => {}
                Ok(_) => {
                    rule.report(run, path, (data, kind), &scope, correlation);
                    if run.budget < 0 {
                        return;
                    }
                }
                Err(Fault::OverBudget) => {
                    let why =
                        "no further validation rules will be run due to call cost exceeds limit for rule";
                    invalid(run, format!("'{}': {why}: {}", Fault::OverBudget, rule.shown()));
                    run.budget = -1;
                    return;
                }
                Err(fault) => {
                    let text = fault.to_string();
                    invalid(
                        run,
                        if text.starts_with("no such overload") {
                            format!(
                                "'{text}': call arguments did not match a supported operator, function or macro \
                             signature for rule: {}",
                                rule.shown()
                            )
                        } else {
                            format!("{text} evaluating rule: {}", rule.shown())
                        },
                    );
                }
            }
        }
    }
}

/// A part of a value that was read already, or read now.
fn child_value(within: &Value, key: &str, data: &Json, schema: &Json) -> Value {
    let known = match within {
        Value::Map(map) => [Some(key.to_owned()), escape(key)]
            .into_iter()
            .flatten()
            .find_map(|name| map.get(&crate::value::Key::String(name.into())).cloned()),
        _ => None,
    };
    known.unwrap_or_else(|| to_value(data, schema))
}

fn has_rules(schema: &Json) -> bool {
    let within = |name: &str| schema.get(name).is_some_and(has_rules);
    let properties = schema.get("properties").and_then(Json::as_object);
    !rules_of(schema).is_empty()
        || within("items")
        || within("additionalProperties")
        || properties.is_some_and(|of| of.values().any(has_rules))
}

/// The variables of a rule.
struct Scope<'v> {
    new: &'v Value,
    old: Option<&'v Value>,
    optional: bool,
}

impl Activation for Scope<'_> {
    fn resolve(&self, name: &str) -> Option<Result<Value, String>> {
        match name {
            "self" => Some(Ok(self.new.clone())),
            "oldSelf" if self.optional => {
                Some(Ok(Value::Optional(self.old.map(|old| Arc::new(old.clone())))))
            }
            "oldSelf" => self.old.map(|old| Ok(old.clone())),
            _ => None,
        }
    }
}

impl Applied {
    fn new(compiled: Compiled, rule: &Rule<'_>, schema: &Json) -> Self {
        let field_path = path::normalize(rule.field_path, schema).unwrap_or_default();
        Self {
            compiled,
            rule: rule.rule.trim().to_owned(),
            message: rule.message.trim().to_owned(),
            message_expression: rule.message_expression.to_owned(),
            reason: rule.reason.map(str::to_owned),
            optional_old_self: rule.is_optional(),
            field_path,
        }
    }

    /// The rule as messages name it.
    fn shown(&self) -> &str {
        if self.message.is_empty() { &self.rule } else { &self.message }
    }

    fn report(
        &self,
        run: &mut Run<'_>,
        path: &Path,
        (data, kind): (&Json, &str),
        scope: &Scope<'_>,
        correlation: Correlation<'_>,
    ) {
        let at = if self.field_path.is_empty() { path.clone() } else { path.child(&self.field_path) };
        let error = |error_kind, value: Option<String>, detail: String| Error {
            kind: error_kind,
            path: at.to_string(),
            value,
            detail,
        };
        let detail = match self.made_message(run, scope) {
            Ok(Some(made)) => made,
            Ok(None) if self.message.is_empty() => format!("failed rule: {}", self.rule),
            Ok(None) => self.message.clone(),
            Err(why) => {
                let failed = error(ErrorKind::Invalid, Some(show(kind)), why);
                self.add(run, failed, correlation);
                run.budget = -1;
                return;
            }
        };
        let omitted = matches!(kind, "object" | "array");
        let value = (!omitted).then(|| show(data.clone()));
        let failed = match self.reason.as_deref() {
            Some("FieldValueForbidden") => error(ErrorKind::Forbidden, None, detail),
            Some("FieldValueRequired") => error(ErrorKind::Required, None, detail),
            Some("FieldValueDuplicate") => error(ErrorKind::Duplicate, value, String::new()),
            _ => error(ErrorKind::Invalid, value, detail),
        };
        self.add(run, failed, correlation);
    }

    fn add(&self, run: &mut Run<'_>, error: Error, correlation: Correlation<'_>) {
        if !self.compiled.uses_old_self && correlation.unchanged() {
            run.warnings.push(error.to_string());
        } else {
            run.errs.push(error);
        }
    }

    /// The message that the rule's expression makes: `None` if there is none to use, an error if checking must end.
    fn made_message(&self, run: &mut Run<'_>, scope: &Scope<'_>) -> Result<Option<String>, String> {
        let Some(program) = &self.compiled.message else { return Ok(None) };
        let outcome = program.eval(scope, PER_CALL_LIMIT);
        let cost = i64::try_from(outcome.cost).unwrap_or(i64::MAX);
        if cost > run.budget {
            return Err(
                "messageExpression evaluation failed due to running out of cost budget, no further validation \
                 rules will be run"
                    .to_owned(),
            );
        }
        if matches!(outcome.result, Err(Fault::OverBudget)) {
            return Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: \
                 {:?}",
                self.message_expression
            ));
        }
        run.budget -= cost;
        let Ok(Value::String(made)) = outcome.result else { return Ok(None) };
        let made = made.trim();
        let usable = !made.is_empty() && made.len() <= MAX_MESSAGE && !made.contains('\n');
        Ok(usable.then(|| made.to_owned()))
    }
}
