//! Expressions and what upstream makes of them: `expressions.txt` (values and errors), `syntax.json` (messages).

use coracle_cel::{Env, PER_CALL_LIMIT, Type, Value};
use serde_json::json;

fn env() -> Env {
    Env::new().with_variable("object", Type::Dyn)
}

/// What the value of an expression looks like, or the mark and message of its error.
fn outcome(expression: &str) -> String {
    let object = Value::from_json(&json!({"metadata": {"name": "x"}, "data": {"a": "1"}}));
    let run = |source: &str| {
        let checked = env().compile(source).map_err(|issues| format!("!compile {issues}"))?;
        let program = checked.program().map_err(|fault| format!("!error {fault}"))?;
        let outcome = program.eval(&[("object", object.clone())], PER_CALL_LIMIT);
        outcome.result.map_err(|fault| format!("!error {fault}"))
    };
    if let Err(error) = run(&format!("[{expression}].size() == 2")) {
        return first_message(&error);
    }
    match run(&format!("'%s'.format([{expression}])")) {
        Ok(Value::String(text)) => text.to_string(),
        Ok(other) => format!("not a string: {other:?}"),
        Err(error) => first_message(&error),
    }
}

/// The first message of a list of issues, without its position.
fn first_message(error: &str) -> String {
    match error.strip_prefix("!compile ") {
        None => error.to_owned(),
        Some(issues) => {
            let line = issues.lines().next().unwrap_or("");
            let message = line.splitn(3, ": ").nth(2).unwrap_or(line);
            format!("!compile {message}")
        }
    }
}

#[test]
fn expressions_have_the_values_and_errors_that_upstream_shows() {
    let mut wrong = Vec::new();
    for line in include_str!("expressions.txt").lines().filter(|line| !line.starts_with('#')) {
        let (expression, expected) = line.split_once('\t').expect("expression, tab, value");
        let found = outcome(expression);
        if found != expected {
            wrong.push(format!("{expression}\n   upstream: {expected}\n   ours:     {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Where our message for a broken expression differs from upstream's, if it does.
fn message_difference(expression: &str, expected: &str) -> Option<String> {
    let env = Env::new().with_variable("object", Type::Dyn);
    let found = match env.compile(expression) {
        Err(issues) => issues.to_string(),
        Ok(checked) if *checked.output_type() != Type::Bool => {
            format!("must evaluate to bool but got {}", checked.output_type())
        }
        Ok(_) => "ok".to_owned(),
    };
    let same = found == expected || expected.ends_with(&found);
    (!same).then(|| format!("{expression:.200}\n   upstream: {expected:.400}\n   ours:     {found:.400}"))
}

#[test]
fn broken_expressions_have_the_messages_that_upstream_shows() {
    let cases: Vec<(String, String)> =
        serde_json::from_str(include_str!("syntax.json")).expect("pairs of expression and message");
    let wrong: Vec<String> = cases.iter().filter_map(|(e, m)| message_difference(e, m)).collect();
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn chains_of_any_operator_are_as_deep_as_they_are_long() {
    for operator in ["in", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%"] {
        let chain = |links: usize| format!("object{}", format!(" {operator} object").repeat(links));
        let refused = env().compile(&chain(1000)).expect_err(operator).to_string();
        assert_eq!(refused, "ERROR: <input>:-1:0: max recursion depth exceeded", "{operator}");
        if let Err(other) = env().compile(&chain(200)) {
            assert!(!other.to_string().contains("recursion"), "{operator}: {other}");
        }
    }
}
