//! The Go types of the API, as far as clients can see them: what a wrong JSON type is told, which empty
//! values count as absent, and what `null` stands for. `go/types.txt` is written by `tools/gotypes.py`.

mod base64;
mod canonical;
mod convert;
mod decode;
mod deep;
mod empties;
mod legible;
mod number;
mod order;
mod time;

pub use canonical::canonicalize;
pub(crate) use convert::kind;
pub use convert::{conversion_error, narrow};
pub use decode::type_error;
pub use deep::without_unknown;
pub use empties::Empties;
pub use legible::legible;
pub use number::write;
pub use order::{Style, append, encode, encode_as, patched_json, to_json};

use std::collections::HashMap;
use std::sync::LazyLock;

static TEXT: &str = include_str!("go/types.txt");

/// Index of a type in the table.
type Id = usize;

/// A Go type.
#[derive(Debug)]
struct Type {
    /// As messages print it: `v1.DNSPolicy`, `[]v1.Container`, `map[string]string`.
    display: String,
    shape: Shape,
    /// The values of an enumeration, sorted; empty for other types.
    values: Vec<&'static str>,
}

/// What JSON a Go type takes.
#[derive(Debug)]
enum Shape {
    /// The fields, sorted by name.
    Struct(Vec<Field>),
    List(Id),
    Map(Id),
    String,
    Bool,
    /// A signed integer of that many bits.
    Int(u32),
    Float,
    /// `[]byte`: base64 text.
    Bytes,
    Quantity,
    Time,
    MicroTime,
    IntOrString,
    /// A schema, or what else may stand in its place: the `JSONSchemaPropsOr…`.
    Schema(Id),
    /// Anything: `interface{}` and types that decode themselves.
    Any,
}

/// A JSON field of a struct.
#[derive(Debug)]
struct Field {
    name: &'static str,
    /// Names of the embedded structs on the way to it.
    via: Vec<&'static str>,
    of: Id,
    /// An unset field is told from one with the zero value.
    pointer: bool,
    /// `omitempty` or `omitzero`.
    omit: bool,
    /// Place in the declaration.
    place: usize,
}

#[derive(Debug, Default)]
struct Table {
    types: Vec<Type>,
    /// Indices by name with package: `core/v1.Pod`.
    names: HashMap<String, Id>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(TEXT));

/// The table's name of a kind: `core/v1.Pod`, `rbac/v1.Role`.
pub fn type_name(group: &str, version: &str, kind: &str) -> String {
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    format!("{package}/{version}.{kind}")
}

/// What Go writes for an unset field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unset {
    /// Nothing.
    Omitted,
    /// `null`.
    Null,
    /// The zero value of the type.
    Zero,
}

/// The place of a field in the declaration of the type behind an OpenAPI definition; last when it is not
/// known.
pub fn place(definition: &str, field: &str) -> usize {
    definition_id(definition)
        .and_then(|id| TABLE.get(id).field(field))
        .map_or(usize::MAX, |field| field.place)
}

/// The values that a field of an OpenAPI definition (or its items) may have, when its type is an enumeration.
pub fn enumeration(definition: &str, field: &str) -> Option<&'static [&'static str]> {
    let field = TABLE.get(definition_id(definition)?).field(field)?;
    let of = match TABLE.get(field.of).shape {
        Shape::List(element) => element,
        _ => field.of,
    };
    let values = TABLE.get(of).values.as_slice();
    (!values.is_empty()).then_some(values)
}

/// Whether a field of an OpenAPI definition is a struct and no pointer, so that it is always there.
pub fn is_plain_struct(definition: &str, field: &str) -> bool {
    let field = definition_id(definition).and_then(|id| TABLE.get(id).field(field));
    field.is_some_and(|field| !field.pointer && matches!(TABLE.get(field.of).shape, Shape::Struct(_)))
}

fn definition_id(definition: &str) -> Option<Id> {
    let name = definition.strip_prefix("io.k8s.api.").or_else(|| definition.split(".pkg.apis.").nth(1));
    let name = name.or_else(|| definition.strip_prefix("io.k8s.apimachinery.pkg."))?;
    TABLE.names.get(&name.replacen('.', "/", 1)).or_else(|| TABLE.names.get(name)).copied()
}

/// How an unset field of an OpenAPI definition (`io.k8s.api.core.v1.PodSpec`) is encoded, if the type is
/// known.
pub(crate) fn unset(definition: &str, field: &str) -> Option<Unset> {
    let table = &*TABLE;
    let field = table.get(definition_id(definition)?).field(field)?;
    Some(match &table.get(field.of).shape {
        _ if field.omit => Unset::Omitted,
        _ if field.pointer => Unset::Null,
        Shape::List(_) | Shape::Map(_) | Shape::Bytes | Shape::Time | Shape::MicroTime => Unset::Null,
        Shape::Any => return None,
        _ => Unset::Zero,
    })
}

impl Table {
    fn parse(text: &'static str) -> Self {
        let lines: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once(' ')).collect();
        let mut table = Self::default();
        for name in lines.keys() {
            table.resolve(name, "", &lines);
        }
        table
    }

    fn get(&self, id: Id) -> &Type {
        &self.types[id]
    }

    /// The index of a type expression that stands in `package`.
    fn resolve(&mut self, expr: &str, package: &str, lines: &HashMap<&'static str, &'static str>) -> Id {
        let local = expr.starts_with(|c: char| c.is_ascii_uppercase());
        let name = if local { format!("{package}.{expr}") } else { expr.to_owned() };
        // Lists and maps of local types are told apart by their package.
        let key = if expr.contains('[') { format!("{package} {expr}") } else { name.clone() };
        if let Some(id) = self.names.get(&key) {
            return *id;
        }
        let id = self.types.len();
        let display = name.rsplit('/').next().unwrap_or("").to_owned();
        self.types.push(Type { display, shape: Shape::Any, values: Vec::new() });
        self.names.insert(key, id);
        let (display, shape) = self.define(&name, package, lines);
        self.types[id].shape = shape;
        let values = lines.get(name.as_str()).and_then(|definition| definition.split_once('='));
        if let Some((_, values)) = values.filter(|(definition, _)| !definition.starts_with('{')) {
            self.types[id].values = values.split(',').collect();
        }
        if let Some(display) = display {
            self.types[id].display = display;
        }
        id
    }

    /// The shape of a type, and how it is printed when that is not its own name.
    fn define(
        &mut self,
        name: &str,
        package: &str,
        lines: &HashMap<&'static str, &'static str>,
    ) -> (Option<String>, Shape) {
        if let Some(element) = name.strip_prefix("[]") {
            if element == "byte" {
                return (Some("[]uint8".into()), Shape::Bytes);
            }
            let element = self.resolve(element.trim_start_matches('*'), package, lines);
            return (Some(format!("[]{}", self.get(element).display)), Shape::List(element));
        }
        if let Some((key, element)) = name.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
            let key = self.resolve(key, package, lines);
            let element = self.resolve(element.trim_start_matches('*'), package, lines);
            let display = format!("map[{}]{}", self.get(key).display, self.get(element).display);
            return (Some(display), Shape::Map(element));
        }
        let shape = match name {
            "string" => Shape::String,
            "bool" => Shape::Bool,
            "int32" => Shape::Int(32),
            "int" | "int64" => Shape::Int(64),
            "float64" => Shape::Float,
            "resource.Quantity" => Shape::Quantity,
            "intstr.IntOrString" => Shape::IntOrString,
            "meta/v1.Time" => Shape::Time,
            "meta/v1.MicroTime" => Shape::MicroTime,
            _ if name.starts_with("apiextensions/v1.JSONSchemaPropsOr") => {
                Shape::Schema(self.resolve("apiextensions/v1.JSONSchemaProps", "", lines))
            }
            _ => match lines.get(name) {
                None | Some(&"!") => Shape::Any,
                Some(definition) => {
                    let package = name.rsplit_once('.').map_or("", |(package, _)| package);
                    self.named(definition, package, lines)
                }
            },
        };
        (None, shape)
    }

    /// The shape behind a name of its own.
    fn named(
        &mut self,
        definition: &'static str,
        package: &str,
        lines: &HashMap<&'static str, &'static str>,
    ) -> Shape {
        if let Some(fields) = definition.strip_prefix('{') {
            let fields = fields.split(' ').filter_map(|text| self.field(text, package, lines));
            let mut fields: Vec<Field> = fields.collect();
            fields.iter_mut().enumerate().for_each(|(place, field)| field.place = place);
            fields.sort_by_key(|field| field.name);
            return Shape::Struct(fields);
        }
        let (definition, _) = definition.split_once('=').unwrap_or((definition, ""));
        let local = definition.starts_with(|c: char| c.is_ascii_uppercase());
        let name = if local { format!("{package}.{definition}") } else { definition.to_owned() };
        self.define(&name, package, lines).1
    }

    fn field(
        &mut self,
        text: &'static str,
        package: &str,
        lines: &HashMap<&'static str, &'static str>,
    ) -> Option<Field> {
        let (path, of) = text.split_once(':')?;
        let mut path = path.split('@');
        let name = path.next()?;
        let (omit, of) = of.strip_prefix('?').map_or((false, of), |rest| (true, rest));
        let (pointer, of) = of.strip_prefix('*').map_or((false, of), |rest| (true, rest));
        Some(Field {
            name,
            via: path.collect(),
            of: self.resolve(of, package, lines),
            pointer,
            omit,
            place: 0,
        })
    }
}

impl Type {
    fn field(&self, name: &str) -> Option<&Field> {
        let Shape::Struct(fields) = &self.shape else { return None };
        fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|i| &fields[i])
    }

    /// The name of a struct without its package.
    fn bare_name(&self) -> &str {
        self.display.rsplit('.').next().unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_printed_as_go_prints_them() {
        let display = |of: &str, field: &str| {
            let id = TABLE.names[of];
            let field = TABLE.get(id).field(field).expect(field);
            (TABLE.get(field.of).display.clone(), field.pointer, field.omit)
        };
        assert_eq!(display("core/v1.PodSpec", "dnsPolicy"), ("v1.DNSPolicy".into(), false, true));
        assert_eq!(display("core/v1.PodSpec", "containers"), ("[]v1.Container".into(), false, false));
        assert_eq!(display("core/v1.PodSpec", "overhead"), ("v1.ResourceList".into(), false, true));
        assert_eq!(display("core/v1.Secret", "data"), ("map[string][]uint8".into(), false, true));
        assert_eq!(display("apps/v1.DeploymentSpec", "replicas"), ("int32".into(), true, true));
        assert_eq!(display("meta/v1.ObjectMeta", "uid"), ("types.UID".into(), false, true));
        let probe = TABLE.get(TABLE.names["core/v1.Probe"]);
        assert_eq!(probe.field("exec").expect("exec").via, ["ProbeHandler"]);
    }
}
