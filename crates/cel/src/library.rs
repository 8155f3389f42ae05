//! The functions. What a function does depends on the values it is given; which overload was meant does not matter.

pub(crate) mod actual;
pub(crate) mod authz;
pub(crate) mod format_string;
mod formats;
mod lists;
mod net;
mod operators;
pub(crate) mod patch;
pub(crate) mod regex;
pub(crate) mod semver;
mod strings;
mod times;
pub(crate) mod url;

pub(crate) use self::operators::insert;
use self::regex::Regex;
use crate::value::{Fault, Fuel, Value};

/// What a function may use up.
pub(crate) struct Host<'a> {
    pub(crate) fuel: &'a Fuel,
    /// Cost until the limit.
    pub(crate) left: u64,
}

type Outcome = Result<Value, Fault>;

/// Calls a function. `pattern` is its pattern where that is constant.
///
/// # Errors
/// Upstream's messages; `no such overload` for values it has no use for.
pub(crate) fn call(function: &str, args: &[Value], pattern: Option<&Regex>, host: &Host<'_>) -> Outcome {
    let found = operators::call(function, args, host)
        .or_else(|| strings::call(function, args, host))
        .or_else(|| lists::call(function, args, host))
        .or_else(|| regex::call(function, args, pattern))
        .or_else(|| times::call(function, args))
        .or_else(|| net::call(function, args))
        .or_else(|| semver::call(function, args))
        .or_else(|| url::call(function, args))
        .or_else(|| formats::call(function, args))
        .or_else(|| authz::call(function, args));
    found.unwrap_or_else(|| Err(no_overload(function, args)))
}

fn no_overload(function: &str, args: &[Value]) -> Fault {
    if let Some(Value::Invalid(why)) = args.iter().find(|arg| matches!(arg, Value::Invalid(_))) {
        return Fault::new(&**why);
    }
    if matches!(
        function,
        "_+_" | "_-_" | "_*_" | "_/_" | "_%_" | "_<_" | "_<=_" | "_>_" | "_>=_" | "-_" | "!_"
    ) {
        return Fault::no_overload();
    }
    let types: Vec<_> = args.iter().map(Value::type_of).collect();
    let names: Vec<&str> = types.iter().map(crate::types::Type::type_name).collect();
    Fault::new(format!("no such overload: {function}({})", names.join(", ")))
}
