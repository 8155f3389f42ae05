//! Bodies that nest deeper than our parser goes. Go's goes down ten thousand levels, and what it skips there
//! costs nothing: fields that the type does not have.

use super::{Id, Shape, TABLE, Table};

/// Go's limit.
const DEEPEST: usize = 10_000;
/// Deeper than any type of the API, and less than our parser's own limit.
const TYPED: usize = 100;

/// The text with `null` in the place of what stands in fields that the type does not have; `None` when it is
/// no JSON, nests too deep or not deep at all, or the type is not known.
pub fn without_unknown(type_name: &str, json: &[u8]) -> Option<Vec<u8>> {
    let table = &*TABLE;
    let id = *table.names.get(type_name)?;
    let mut cut = Cut { table, json, at: 0, deepest: 0, out: Vec::with_capacity(json.len().min(4096)) };
    cut.typed(Some(id), TYPED)?;
    (cut.peek().is_none() && cut.deepest >= TYPED).then_some(cut.out)
}

struct Cut<'a> {
    table: &'a Table,
    json: &'a [u8],
    at: usize,
    /// Levels of what was skipped.
    deepest: usize,
    out: Vec<u8>,
}

impl Cut<'_> {
    fn peek(&mut self) -> Option<u8> {
        while self.json.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.json.get(self.at).copied()
    }

    /// Copies one byte.
    fn punctuation(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        self.out.push(byte);
        Some(byte)
    }

    /// Copies a value of a type, or of no known one when it may be anything.
    fn typed(&mut self, id: Option<Id>, left: usize) -> Option<()> {
        let left = left.checked_sub(1)?;
        let open = self.peek()?;
        if !matches!(open, b'{' | b'[') {
            let begin = self.at;
            self.skip()?;
            self.out.extend_from_slice(&self.json[begin..self.at]);
            return Some(());
        }
        self.punctuation()?;
        if matches!(self.peek()?, b'}' | b']') {
            return self.punctuation().map(drop);
        }
        loop {
            let of = id.map(|id| self.table.get(id));
            let mut unknown = false;
            let mut element = match of.map(|of| &of.shape) {
                Some(Shape::List(element) | Shape::Map(element)) => Some(*element),
                _ => None,
            };
            if open == b'{' {
                let begin = self.at;
                self.skip()?;
                let name = serde_json::from_slice::<String>(&self.json[begin..self.at]).ok()?;
                self.out.extend_from_slice(&self.json[begin..self.at]);
                self.punctuation().filter(|byte| *byte == b':')?;
                if let Some(of) = of.filter(|of| matches!(of.shape, Shape::Struct(_))) {
                    element = of.field(&name).map(|field| field.of);
                    unknown = element.is_none();
                }
            }
            if unknown && matches!(self.peek()?, b'{' | b'[') {
                self.skip()?;
                self.out.extend_from_slice(b"null");
            } else {
                self.typed(element, left)?;
            }
            if self.punctuation()? != b',' {
                return Some(());
            }
            self.peek()?;
        }
    }

    /// Goes behind a value without calling itself.
    fn skip(&mut self) -> Option<()> {
        let (mut depth, mut first) = (0_usize, true);
        while depth > 0 || first {
            match self.peek()? {
                b'{' | b'[' => (depth, first) = (depth + 1, false),
                b'}' | b']' => depth = depth.checked_sub(1)?,
                b'"' => {
                    first = false;
                    self.at += 1;
                    while *self.json.get(self.at)? != b'"' {
                        self.at += if self.json[self.at] == b'\\' { 2 } else { 1 };
                    }
                }
                b',' | b':' if depth > 0 => {}
                _ => {
                    first = false;
                    let more = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
                    let rest = &self.json[self.at..];
                    let length = rest.iter().take_while(|b| more(b)).count();
                    self.at += length.checked_sub(1)?;
                }
            }
            self.at += 1;
            self.deepest = self.deepest.max(depth);
            if depth > DEEPEST {
                return None;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_may_nest_as_deep_as_go_allows() {
        let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let body = |levels: usize| {
            let deep = deep(levels);
            format!(r#"{{"x": {deep}, "metadata":{{"name":"a\"]","y":{{"z":{deep}}}}}, "data":{{"k":"v"}}}}"#)
        };
        let cut = without_unknown("core/v1.ConfigMap", body(5000).as_bytes()).unwrap();
        let told = r#"{"x":null,"metadata":{"name":"a\"]","y":null},"data":{"k":"v"}}"#;
        assert_eq!(String::from_utf8(cut).unwrap(), told);
        assert_eq!(without_unknown("core/v1.ConfigMap", body(10_001).as_bytes()), None);
        let known = format!(r#"{{"data":{}}}"#, deep(200));
        assert_eq!(without_unknown("core/v1.ConfigMap", known.as_bytes()), None);
        assert_eq!(without_unknown("core/v1.ConfigMap", br#"{"x":[[1}"#), None);
        assert_eq!(without_unknown("core/v1.ConfigMap", br#"{"x":[[1]]}"#), None, "nothing deep");
        assert_eq!(without_unknown("core/v1.ConfigMap", format!("{} x", body(500)).as_bytes()), None);
    }
}
