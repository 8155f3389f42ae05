//! Expressions of admission: policies, mutations, match conditions. What they may name and what they must yield.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use crate::env::Env;
use crate::eval::Program;
use crate::schema::DeclType;
use crate::types::Type;

/// Which variables an expression has beside `object`, `oldObject`, `request` and `namespaceObject`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `params`.
    pub params: bool,
    /// `authorizer` and `authorizer.requestResource`.
    pub authorizer: bool,
    /// `Object{…}`, `JSONPatch{…}` and `jsonpatch.escapeKey`.
    pub patch_types: bool,
}

/// What an expression must yield.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// Whatever it likes: variables.
    Anything,
    /// A condition.
    Bool,
    /// A message.
    String,
    /// The value of an audit annotation.
    StringOrNull,
    /// An apply configuration.
    Object,
    /// A list of JSON patch operations.
    JsonPatch,
}

/// Why an expression cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Whether upstream reports it as a fault of the server.
    pub internal: bool,
    /// What is wrong.
    pub detail: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Unusable {}

static REQUEST: LazyLock<Arc<DeclType>> = LazyLock::new(|| {
    let text = || DeclType::simple(Type::String);
    let of = |part: &'static str| vec![("group", text()), ("version", text()), (part, text())];
    let kind = DeclType::object("kubernetes.GroupVersionKind", of("kind"));
    let resource = DeclType::object("kubernetes.GroupVersionResource", of("resource"));
    let texts = || DeclType::list(text(), -1);
    let user = DeclType::object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", texts()),
            ("extra", DeclType::map(text(), texts(), -1)),
        ],
    );
    DeclType::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", text()),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", DeclType::simple(Type::Bool)),
            ("options", DeclType::simple(Type::Dyn)),
        ],
    )
});

static NAMESPACE: LazyLock<Arc<DeclType>> = LazyLock::new(|| {
    let text = || DeclType::simple(Type::String);
    let time = || DeclType::simple(Type::Timestamp);
    let whole = || DeclType::simple(Type::Int);
    let texts = || DeclType::list(text(), -1);
    let words = || DeclType::map(text(), text(), -1);
    let condition = DeclType::object(
        "kubernetes.NamespaceCondition",
        [
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", time()),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let metadata = DeclType::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", words()),
            ("annotations", words()),
            ("UID", text()),
            ("creationTimestamp", time()),
            ("deletionGracePeriodSeconds", whole()),
            ("deletionTimestamp", time()),
            ("generation", whole()),
            ("resourceVersion", text()),
            ("finalizers", texts()),
        ],
    );
    let spec = DeclType::object("kubernetes.NamespaceSpec", [("finalizers", texts())]);
    let status = DeclType::object(
        "kubernetes.NamespaceStatus",
        [("conditions", DeclType::list(condition, -1)), ("phase", text())],
    );
    DeclType::object("kubernetes.Namespace", [("metadata", metadata), ("spec", spec), ("status", status)])
});

static BASE: LazyLock<Env> = LazyLock::new(|| {
    Env::new()
        .with_variable("object", Type::Dyn)
        .with_variable("oldObject", Type::Dyn)
        .with_declared("namespaceObject", &NAMESPACE)
        .with_declared("request", &REQUEST)
});

/// Compiles the expressions of one policy.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    /// Types of the variables so far; `None` where `variables` is not known at all.
    variables: Option<BTreeMap<String, Arc<DeclType>>>,
    object: Option<Arc<DeclType>>,
    params: Option<Arc<DeclType>>,
}

impl Compiler {
    /// For expressions without `variables`: match conditions of webhooks, policies that declare none.
    pub fn plain() -> Self {
        Self::default()
    }

    /// For policies with variables.
    pub fn composed() -> Self {
        Self { variables: Some(BTreeMap::new()), ..Self::default() }
    }

    /// The same with declared types for `object` and `params`, to find out whether expressions fit a kind.
    #[must_use]
    pub fn typed(mut self, object: Option<Arc<DeclType>>, params: Option<Arc<DeclType>>) -> Self {
        (self.object, self.params) = (object, params);
        self
    }

    fn env(&self, options: Options) -> Env {
        let mut env = BASE.clone();
        if let Some(object) = &self.object {
            env = env.with_declared("object", object).with_declared("oldObject", object);
        }
        if options.params {
            env = match &self.params {
                Some(params) => env.with_declared("params", params),
                None => env.with_variable("params", Type::Dyn),
            };
        }
        if options.authorizer {
            env = env
                .with_variable("authorizer", Type::object("kubernetes.authorization.Authorizer"))
                .with_variable(
                    "authorizer.requestResource",
                    Type::object("kubernetes.authorization.ResourceCheck"),
                );
        }
        if options.patch_types {
            env = env.with_patch_types();
        }
        match &self.variables {
            Some(variables) => env.with_declared("variables", &DeclType::of_variables(variables)),
            None => env,
        }
    }

    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(&self, expression: &str, options: Options, returns: Returns) -> Result<Program, Unusable> {
        let invalid = |detail: String| Unusable { internal: false, detail };
        let checked = self
            .env(options)
            .compile(expression)
            .map_err(|issues| invalid(format!("compilation failed: {issues}")))?;
        returns.accept(checked.output_type()).map_err(invalid)?;
        checked.program().map_err(|fault| Unusable {
            internal: true,
            detail: format!("program instantiation failed: {fault}"),
        })
    }

    /// Compiles a variable; expressions compiled from now on may name it, whether it compiles or not.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn add_variable(
        &mut self,
        name: &str,
        expression: &str,
        options: Options,
    ) -> Result<Program, Unusable> {
        let compiled = self.compile(expression, options, Returns::Anything);
        let of =
            compiled.as_ref().map_or_else(|_| DeclType::simple(Type::Dyn), |p| declared(p.output_type()));
        self.variables.get_or_insert_default().insert(name.to_owned(), of);
        compiled
    }
}

/// The declared type of a variable: of lists and maps the parts too, of records nothing.
fn declared(of: &Type) -> Arc<DeclType> {
    match of {
        Type::List(element) => DeclType::list(declared(element), -1),
        Type::Map(key, value) => DeclType::map(declared(key), declared(value), -1),
        Type::Any
        | Type::Bool
        | Type::Bytes
        | Type::Double
        | Type::Duration
        | Type::Int
        | Type::Null
        | Type::String
        | Type::Timestamp
        | Type::Uint => DeclType::simple(of.clone()),
        _ => DeclType::simple(Type::Dyn),
    }
}

impl Returns {
    fn accept(self, of: &Type) -> Result<(), String> {
        let wanted = match self {
            Self::Anything => return Ok(()),
            Self::Bool => vec![Type::Bool],
            Self::String => vec![Type::String],
            Self::StringOrNull => vec![Type::String, Type::Null],
            Self::Object => vec![Type::object("Object")],
            Self::JsonPatch => vec![Type::list(Type::object("JSONPatch"))],
        };
        if wanted.contains(of) {
            return Ok(());
        }
        let names: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        Err(match names.as_slice() {
            [one] => format!("must evaluate to {one} but got {of}"),
            many => format!("must evaluate to one of [{}] but got {of}", many.join(" ")),
        })
    }
}
