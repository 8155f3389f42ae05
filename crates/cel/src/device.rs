//! Selectors of devices (`resource.k8s.io`): what they may name, and the values they are asked about.

use std::sync::{Arc, LazyLock};

use coracle_meta::quantity::Quantity;

use crate::cost::SizeHints;
use crate::env::Env;
use crate::eval::Program;
use crate::library::semver;
use crate::schema::DeclType;
use crate::types::Type;
use crate::value::{Key, Lookup, Map, Value};

/// What a selector may cost, estimated and when it runs.
pub const MAX_COST: u64 = 1_000_000;

const MAX_DOMAIN: i64 = 63;
const MAX_ID: i64 = 32;
const MAX_VALUE: i64 = 64;
const MAX_ENTRIES: i64 = 32;

static DEVICE: LazyLock<Arc<DeclType>> = LazyLock::new(|| {
    let domain = || DeclType::bounded(Type::String, MAX_DOMAIN);
    let id = || DeclType::bounded(Type::String, MAX_ID);
    let nested = |value| DeclType::map(domain(), DeclType::map(id(), value, MAX_ENTRIES), MAX_ENTRIES);
    let quantity = DeclType::bounded(Type::object("kubernetes.Quantity"), 0);
    DeclType::object(
        "kubernetes.DRADevice",
        [
            ("driver", DeclType::bounded(Type::String, MAX_DOMAIN)),
            ("allowMultipleAllocations", DeclType::bounded(Type::Bool, 1)),
            ("attributes", nested(DeclType::bounded(Type::Any, MAX_VALUE))),
            ("capacity", nested(quantity)),
        ],
    )
});

static ENV: LazyLock<Env> = LazyLock::new(|| Env::new().with_declared("device", &DEVICE).with_bindings());

/// Sizes of what is below `device`. Names below attributes stand for their entries.
struct Hints;

impl SizeHints for Hints {
    fn max_size(&self, path: &[Arc<str>]) -> Option<u64> {
        let (first, rest) = path.split_first()?;
        if &**first != "device" {
            return None;
        }
        let mut at: &Arc<DeclType> = &DEVICE;
        for name in rest {
            at = match &**name {
                "@items" | "@values" => at.element.as_ref()?,
                "@keys" => at.key.as_ref()?,
                name => match at.fields.as_ref().and_then(|fields| fields.get(name)) {
                    Some(field) => field,
                    None => at.element.as_ref().filter(|of| of.cel_type() == Type::Any)?,
                },
            };
        }
        u64::try_from(at.max).ok()
    }
}

/// A selector ready to be asked.
#[derive(Clone, Debug)]
pub struct Selector {
    program: Program,
    /// Estimated cost, at most.
    pub max_cost: u64,
}

/// Why a selector cannot be used, and whether upstream reports that as a fault of the server.
pub type Unusable = crate::policy::Unusable;

/// A device as selectors see it.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// The driver's name; the domain of names without one.
    pub driver: String,
    /// Whether several claims may share it.
    pub allow_multiple_allocations: bool,
    /// Attributes by qualified name.
    pub attributes: Vec<(String, Attribute)>,
    /// Capacities by qualified name.
    pub capacity: Vec<(String, Quantity)>,
}

/// The value of an attribute.
#[derive(Clone, Debug)]
pub enum Attribute {
    /// A whole number.
    Int(i64),
    /// A truth value.
    Bool(bool),
    /// A text.
    String(String),
    /// A semantic version.
    Version(String),
}

/// A map in which every domain is, if only empty.
struct Domains(Map);

impl Lookup for Domains {
    fn get(&self, name: &str) -> Option<Result<Value, String>> {
        let found = self.0.get(&Key::String(name.into())).cloned();
        Some(Ok(found.unwrap_or_else(|| Value::Map(Arc::default()))))
    }
}

fn by_domain(driver: &str, entries: impl Iterator<Item = (String, Value)>) -> Value {
    let mut domains: std::collections::BTreeMap<String, Map> = std::collections::BTreeMap::new();
    for (name, value) in entries {
        let (domain, id) = name.split_once('/').unwrap_or((driver, &name));
        domains.entry(domain.to_owned()).or_default().insert(Key::String(id.into()), value);
    }
    let domains = domains.into_iter().map(|(name, map)| (Key::String(name.into()), Value::Map(map.into())));
    Value::Lookup(Arc::new(Domains(domains.collect())))
}

impl Device {
    fn value(&self) -> Result<Value, String> {
        let mut attributes = Vec::with_capacity(self.attributes.len());
        for (name, attribute) in &self.attributes {
            let value = match attribute {
                Attribute::Int(value) => Value::Int(*value),
                Attribute::Bool(value) => Value::Bool(*value),
                Attribute::String(text) => Value::string(text),
                Attribute::Version(text) => {
                    let version = semver::parse(text)
                        .map_err(|why| format!("attribute {name}: parse semantic version: {why}"))?;
                    Value::Semver(version.into())
                }
            };
            attributes.push((name.clone(), value));
        }
        let capacity = self.capacity.iter().map(|(name, amount)| (name.clone(), Value::Quantity(*amount)));
        let fields = [
            ("driver", Value::string(&self.driver)),
            ("allowMultipleAllocations", Value::Bool(self.allow_multiple_allocations)),
            ("attributes", by_domain(&self.driver, attributes.into_iter())),
            ("capacity", by_domain(&self.driver, capacity)),
        ];
        let map: Map = fields.into_iter().map(|(name, value)| (Key::String(name.into()), value)).collect();
        Ok(Value::Map(map.into()))
    }
}

impl Selector {
    /// Compiles a selector.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(expression: &str) -> Result<Self, Unusable> {
        let invalid = |detail: String| Unusable { internal: false, detail };
        let checked =
            ENV.compile(expression).map_err(|issues| invalid(format!("compilation failed: {issues}")))?;
        let of = checked.output_type();
        if !matches!(of, Type::Bool | Type::Any) {
            return Err(invalid(format!("must evaluate to bool or the unknown type, not {of}")));
        }
        let program = checked.program().map_err(|fault| Unusable {
            internal: true,
            detail: format!("program instantiation failed: {fault}"),
        })?;
        Ok(Self { program, max_cost: checked.cost(&Hints).max })
    }

    /// Whether a device is selected.
    ///
    /// # Errors
    /// The expression's error for this device.
    pub fn matches(&self, device: &Device) -> Result<bool, String> {
        let value = device.value()?;
        match self.program.eval(&[("device", value)], MAX_COST).result {
            Ok(Value::Bool(selected)) => Ok(selected),
            Ok(other) => {
                let of = other.type_of();
                Err(format!("CEL result of type {} could not be converted to bool", of.type_name()))
            }
            Err(fault) => Err(fault.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_see_attributes_by_domain_and_absent_domains_as_empty() {
        let device = Device {
            driver: "gpu.example.com".to_owned(),
            attributes: vec![
                ("model".to_owned(), Attribute::String("a100".to_owned())),
                ("other.example.com/version".to_owned(), Attribute::Version("1.2.3".to_owned())),
            ],
            capacity: vec![("memory".to_owned(), Quantity::parse("40Gi").expect("a quantity"))],
            ..Device::default()
        };
        let check = |expression: &str, expected: Result<bool, &str>| {
            let selector = Selector::compile(expression).expect(expression);
            let found = selector.matches(&device);
            assert_eq!(found, expected.map_err(str::to_owned), "{expression}");
        };
        check("device.driver == 'gpu.example.com'", Ok(true));
        check("device.attributes['gpu.example.com'].model == 'a100'", Ok(true));
        check("device.attributes['none.example.com'].?model.orValue('x') == 'x'", Ok(true));
        check("device.attributes['none.example.com'].model == 'x'", Err("no such key: model"));
        check("device.capacity['gpu.example.com'].memory.isGreaterThan(quantity('20Gi'))", Ok(true));
        check(
            "cel.bind(v, device.attributes['other.example.com'].version, v.isLessThan(semver('2.0.0')))",
            Ok(true),
        );
    }
}
