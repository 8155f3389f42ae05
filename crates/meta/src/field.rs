//! Field errors: a path, a kind, a value and a detail. Validators collect them and never stop at the first.
//!
//! Message texts equal those of `k8s.io/apimachinery/pkg/util/validation/field`.

use std::fmt;

use serde_json::{Value, json};

/// A path such as `spec.containers[0].name`. Cheap to extend: `path.child("name")`, `path.index(0)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A root path, e.g. `spec` or `metadata.name`.
    pub fn new(root: &str) -> Self {
        Self(root.to_owned())
    }
    /// A field below this path.
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { self.with(&[".", name]) }
    }
    /// A list element below this path.
    pub fn index(&self, i: usize) -> Self {
        self.with(&["[", &i.to_string(), "]"])
    }
    /// A map entry below this path.
    pub fn key(&self, key: &str) -> Self {
        self.with(&["[", key, "]"])
    }
    /// Validators make a path for every field that they look at: one allocation each, and no formatting.
    fn with(&self, parts: &[&str]) -> Self {
        let mut path =
            String::with_capacity(self.0.len() + parts.iter().map(|part| part.len()).sum::<usize>());
        path.push_str(&self.0);
        parts.iter().for_each(|part| path.push_str(part));
        Self(path)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

impl From<&str> for Path {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<&Path> for Path {
    fn from(path: &Path) -> Self {
        path.clone()
    }
}

/// What is wrong with a field: `FieldValue…` in a Status cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are upstream's ErrorType values")]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl ErrorKind {
    fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One field error.
#[derive(Clone, Debug)]
pub struct Error {
    /// What is wrong.
    pub kind: ErrorKind,
    /// Where.
    pub path: String,
    /// The offending value in Go's message form (`"x"`, `-1`, `{"a":1}`), where the kind prints one.
    pub value: Option<String>,
    /// More words; may be empty.
    pub detail: String,
}

impl Error {
    /// The message without the path: `Invalid value: "x": must be …`.
    pub fn body(&self) -> String {
        let mut text = self.kind.text().to_owned();
        if let Some(value) = &self.value {
            text.push_str(": ");
            text.push_str(value);
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// Prints a value as upstream's messages do: strings quoted, the rest as compact JSON.
pub fn show(value: impl Into<Value>) -> String {
    match value.into() {
        value @ (Value::Array(_) | Value::Object(_)) => escaped(&value.to_string()),
        value => value.to_string(),
    }
}

/// JSON as Go writes it, which is safe within HTML.
pub fn escaped(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// Collected field errors, in the order found.
#[derive(Clone, Debug, Default)]
pub struct ErrorList(Vec<Error>);

impl ErrorList {
    /// No errors yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Number of errors.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// The errors in order.
    pub fn iter(&self) -> impl Iterator<Item = &Error> {
        self.0.iter()
    }
    /// The errors in order, to be amended.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Error> {
        self.0.iter_mut()
    }
    /// Adds an error made by hand.
    pub fn push(&mut self, error: Error) {
        self.0.push(error);
    }
    /// Adds all errors of another list.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
    fn add(
        &mut self,
        kind: ErrorKind,
        path: impl Into<Path>,
        value: Option<String>,
        detail: impl Into<String>,
    ) {
        self.0.push(Error { kind, path: path.into().to_string(), value, detail: detail.into() });
    }
    /// The field must be set.
    pub fn required(&mut self, path: impl Into<Path>, detail: impl Into<String>) {
        self.add(ErrorKind::Required, path, None, detail);
    }
    /// The value is not acceptable.
    pub fn invalid(&mut self, path: impl Into<Path>, value: impl Into<Value>, detail: impl Into<String>) {
        self.add(ErrorKind::Invalid, path, Some(show(value)), detail);
    }
    /// The text is not acceptable. As [`ErrorList::invalid`], where upstream's text is of a type of its own: those are
    /// shown as JSON.
    pub fn invalid_typed(&mut self, path: impl Into<Path>, value: &str, detail: impl Into<String>) {
        self.add(ErrorKind::Invalid, path, Some(escaped(&show(value))), detail);
    }
    /// The value has the wrong type.
    pub fn type_invalid(
        &mut self,
        path: impl Into<Path>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) {
        self.add(ErrorKind::TypeInvalid, path, Some(show(value)), detail);
    }
    /// The value occurs twice.
    pub fn duplicate(&mut self, path: impl Into<Path>, value: impl Into<Value>) {
        self.add(ErrorKind::Duplicate, path, Some(show(value)), "");
    }
    /// The value names something that is not there.
    pub fn not_found(&mut self, path: impl Into<Path>, value: impl Into<Value>) {
        self.add(ErrorKind::NotFound, path, Some(show(value)), "");
    }
    /// The field may not be set (or changed) here.
    pub fn forbidden(&mut self, path: impl Into<Path>, detail: impl Into<String>) {
        self.add(ErrorKind::Forbidden, path, None, detail);
    }
    /// The value is not one of a closed set; the message lists the set in the order given (callers sort).
    pub fn not_supported(&mut self, path: impl Into<Path>, value: impl Into<Value>, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail =
            if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        self.add(ErrorKind::NotSupported, path, Some(escaped(&show(value))), detail);
    }
    /// As [`ErrorList::not_supported`], where upstream's value is a plain text.
    pub fn not_supported_text(&mut self, path: impl Into<Path>, value: &str, supported: &[&str]) {
        self.not_supported(path, value, supported);
        if let Some(last) = self.0.last_mut() {
            last.value = Some(show(value));
        }
    }
    /// The value has more than `max` bytes.
    pub fn too_long(&mut self, path: impl Into<Path>, max: usize) {
        self.add(ErrorKind::TooLong, path, None, format!("may not be more than {max} bytes"));
    }
    /// The list has `actual` items, more than `max`.
    pub fn too_many(&mut self, path: impl Into<Path>, actual: usize, max: usize) {
        let unit = if max == 1 { "item" } else { "items" };
        self.add(
            ErrorKind::TooMany,
            path,
            Some(actual.to_string()),
            format!("must have at most {max} {unit}"),
        );
    }
    /// A fault of the server while checking.
    pub fn internal(&mut self, path: impl Into<Path>, detail: impl Into<String>) {
        self.add(ErrorKind::Internal, path, None, detail);
    }
    /// `field is immutable` when the two differ.
    pub fn immutable<T: PartialEq + serde::Serialize>(&mut self, path: impl Into<Path>, new: &T, old: &T) {
        if new != old {
            let shown = serde_json::to_value(new).unwrap_or(Value::Null);
            self.invalid(path, shown, "field is immutable");
        }
    }
    /// The message of all errors: one alone, or `[a, b]`, duplicates left out.
    pub fn aggregate(&self) -> String {
        let mut seen: Vec<String> = Vec::new();
        for error in &self.0 {
            let text = error.to_string();
            if !seen.contains(&text) {
                seen.push(text);
            }
        }
        if let [only] = seen.as_slice() { only.clone() } else { format!("[{}]", seen.join(", ")) }
    }
    /// The `causes` of a Status.
    pub fn causes(&self) -> Value {
        self.0
            .iter()
            .map(|e| json!({ "reason": e.kind.reason(), "message": e.body(), "field": e.path }))
            .collect::<Vec<_>>()
            .into()
    }
}
