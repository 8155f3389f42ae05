//! Walks a JSON document beside the Go type it is meant for, as `sigs.k8s.io/json` does, and tells the error
//! that its decoder ends with. Runs only when decoding has failed, so it takes the text as it stands.

use super::{Id, Shape, TABLE, Table, Type, base64, time};
use crate::quantity::Quantity;

/// The message for a document that does not fit the type: the first misplaced value, or what a type that
/// decodes itself says. `None` when it fits, when the type is not known or the text is no JSON.
pub fn type_error(type_name: &str, json: &[u8]) -> Option<String> {
    let table = &*TABLE;
    let id = *table.names.get(type_name)?;
    let mut walk = Walk { table, json, at: 0, holder: None, path: Vec::new(), first: None };
    match walk.value(Some(id)) {
        Err(Stop::Refused(message)) => Some(message),
        Ok(()) => walk.first,
        Err(Stop::Malformed) => None,
    }
}

/// Why a walk ends early.
enum Stop {
    /// A type that decodes itself refused its value: that is what the decoder answers.
    Refused(String),
    /// Not JSON.
    Malformed,
}

struct Walk<'a> {
    table: &'a Table,
    json: &'a [u8],
    at: usize,
    /// The struct whose field is being read.
    holder: Option<&'a Type>,
    /// Names of the fields on the way.
    path: Vec<String>,
    /// The first error that did not end the walk.
    first: Option<String>,
}

impl<'a> Walk<'a> {
    /// The first byte of the next token.
    fn peek(&mut self) -> Result<u8, Stop> {
        while self.json.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.json.get(self.at).copied().ok_or(Stop::Malformed)
    }

    fn expect(&mut self, wanted: u8) -> Result<(), Stop> {
        if self.peek()? != wanted {
            return Err(Stop::Malformed);
        }
        self.at += 1;
        Ok(())
    }

    /// Notes a value of the wrong type, if it is the first.
    fn misplaced(&mut self, what: &str, id: Id) {
        let message = self.mismatch(what, &self.table.get(id).display);
        self.first.get_or_insert(message);
    }

    fn mismatch(&self, what: &str, of: &str) -> String {
        match self.holder {
            Some(holder) => {
                let (holder, path) = (holder.bare_name(), self.path.join("."));
                format!("json: cannot unmarshal {what} into Go struct field {holder}.{path} of type {of}")
            }
            None => format!("json: cannot unmarshal {what} into Go value of type {of}"),
        }
    }

    /// A value of the type; of no type when it is only to be skipped.
    fn value(&mut self, id: Option<Id>) -> Result<(), Stop> {
        let start = self.peek()?;
        let shape = id.map(|id| &self.table.get(id).shape);
        if let Some((id, Shape::Schema(schema))) = id.zip(shape) {
            return self.schema(start, &self.table.get(id).display, *schema);
        }
        if let Some(own) = shape.filter(|s| decodes_itself(s)) {
            let begin = self.at;
            self.walk(start, None)?;
            return self.refuse(own, &self.json[begin..self.at]);
        }
        self.walk(start, id)
    }

    /// A schema or something else in its place. It is decoded apart, and what that refuses is the last word.
    fn schema(&mut self, start: u8, display: &str, schema: Id) -> Result<(), Stop> {
        let begin = self.at;
        self.walk(start, None)?;
        let json = &self.json[begin..self.at];
        let (object, list) = (start == b'{', start == b'[' && display.ends_with("OrArray"));
        if object || list {
            let mut inner = Walk { json, at: 0, holder: None, path: Vec::new(), first: None, ..*self };
            if object {
                inner.value(Some(schema))?;
            } else {
                inner.items(Some(schema))?;
            }
            return inner.first.map_or(Ok(()), |message| Err(Stop::Refused(message)));
        }
        if display.ends_with("OrBool") && !matches!(json, b"true" | b"false" | b"null") {
            return Err(Stop::Refused("boolean or JSON schema expected".to_owned()));
        }
        Ok(())
    }

    fn walk(&mut self, start: u8, id: Option<Id>) -> Result<(), Stop> {
        match start {
            b'{' => self.object(id),
            b'[' => self.array(id),
            b'"' => self.string(id),
            _ => self.literal(id),
        }
    }

    fn object(&mut self, id: Option<Id>) -> Result<(), Stop> {
        let id = match id.map(|id| (id, &self.table.get(id).shape)) {
            None | Some((_, Shape::Any)) => None,
            Some((id, Shape::Struct(_) | Shape::Map(_))) => Some(id),
            Some((id, _)) => {
                self.misplaced("object", id);
                None
            }
        };
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            return self.expect(b'}');
        }
        let (holder, depth) = (self.holder, self.path.len());
        loop {
            let name = self.text()?;
            self.expect(b':')?;
            let mut of = None;
            match id.map(|id| self.table.get(id)) {
                Some(Type { shape: Shape::Map(element), .. }) => of = Some(*element),
                Some(structure) => {
                    if let Some(field) = structure.field(&name) {
                        self.path.extend(field.via.iter().map(|via| (*via).to_owned()));
                        self.path.push(name);
                        self.holder = Some(structure);
                        of = Some(field.of);
                    }
                }
                None => {}
            }
            self.value(of)?;
            self.path.truncate(depth);
            self.holder = holder;
            if self.peek()? == b'}' {
                return self.expect(b'}');
            }
            self.expect(b',')?;
        }
    }

    fn array(&mut self, id: Option<Id>) -> Result<(), Stop> {
        let element = match id.map(|id| (id, &self.table.get(id).shape)) {
            None | Some((_, Shape::Any)) => None,
            Some((_, Shape::List(element))) => Some(*element),
            Some((id, _)) => {
                self.misplaced("array", id);
                None
            }
        };
        self.items(element)
    }

    fn items(&mut self, element: Option<Id>) -> Result<(), Stop> {
        self.expect(b'[')?;
        if self.peek()? == b']' {
            return self.expect(b']');
        }
        loop {
            self.value(element)?;
            if self.peek()? == b']' {
                return self.expect(b']');
            }
            self.expect(b',')?;
        }
    }

    /// The text of a JSON string.
    fn text(&mut self) -> Result<String, Stop> {
        if self.peek()? != b'"' {
            return Err(Stop::Malformed);
        }
        let begin = self.at;
        let mut end = begin + 1;
        loop {
            match self.json.get(end).ok_or(Stop::Malformed)? {
                b'"' => break,
                b'\\' => end += 2,
                _ => end += 1,
            }
        }
        self.at = end + 1;
        serde_json::from_slice(&self.json[begin..=end]).map_err(|_| Stop::Malformed)
    }

    fn string(&mut self, id: Option<Id>) -> Result<(), Stop> {
        let text = self.text()?;
        match id.map(|id| (id, &self.table.get(id).shape)) {
            None | Some((_, Shape::Any | Shape::String)) => {}
            Some((_, Shape::Bytes)) => {
                if let Some(at) = base64::corrupt_at(text.as_bytes()) {
                    self.first.get_or_insert(format!("illegal base64 data at input byte {at}"));
                }
            }
            Some((id, _)) => self.misplaced("string", id),
        }
        Ok(())
    }

    /// A number, `true`, `false` or `null`.
    fn literal(&mut self, id: Option<Id>) -> Result<(), Stop> {
        let rest = &self.json[self.at..];
        let more = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        let length = rest.iter().position(|b| !more(b)).unwrap_or(rest.len());
        let text = std::str::from_utf8(&rest[..length]).map_err(|_| Stop::Malformed)?;
        if text.is_empty() {
            return Err(Stop::Malformed);
        }
        self.at += length;
        let Some(id) = id else { return Ok(()) };
        let boolean = matches!(text, "true" | "false");
        match &self.table.get(id).shape {
            _ if text == "null" => {}
            Shape::Any => {}
            Shape::Bool if boolean => {}
            _ if boolean => self.misplaced("bool", id),
            Shape::Int(bits) if !fits(text, *bits) => self.misplaced(&format!("number {text}"), id),
            Shape::Float if !text.parse::<f64>().is_ok_and(f64::is_finite) => {
                self.misplaced(&format!("number {text}"), id);
            }
            Shape::Int(_) | Shape::Float => {}
            _ => self.misplaced("number", id),
        }
        Ok(())
    }

    /// What a type that decodes itself says to a value.
    fn refuse(&self, shape: &Shape, raw: &[u8]) -> Result<(), Stop> {
        let raw = std::str::from_utf8(raw).map_err(|_| Stop::Malformed)?;
        if raw == "null" {
            return Ok(());
        }
        let text = raw.starts_with('"').then(|| serde_json::from_str::<String>(raw).unwrap_or_default());
        let foreign = |of: &str| {
            let what = match raw.as_bytes().first() {
                Some(b'{') => "object".to_owned(),
                Some(b'[') => "array".to_owned(),
                Some(b't' | b'f') => "bool".to_owned(),
                _ if of == "int32" => format!("number {raw}"),
                _ => "number".to_owned(),
            };
            self.mismatch(&what, of)
        };
        let message = match (shape, text) {
            // A quantity takes numbers too, and its text as it stands between the quotes.
            (Shape::Quantity, _) => Quantity::parse(raw.trim_matches('"').trim()).err(),
            (Shape::IntOrString, None) => (!fits(raw, 32)).then(|| foreign("int32")),
            (Shape::Time, Some(text)) => time::parse_error(&text, false),
            (Shape::MicroTime, Some(text)) => time::parse_error(&text, true),
            (Shape::Time | Shape::MicroTime, None) => Some(foreign("string")),
            _ => None,
        };
        message.map_or(Ok(()), |message| Err(Stop::Refused(message)))
    }
}

/// What a type that decodes itself says to a value that is decoded alone.
pub(super) fn own_error(shape: &Shape, json: &str) -> Option<String> {
    let walk =
        Walk { table: &TABLE, json: json.as_bytes(), at: 0, holder: None, path: Vec::new(), first: None };
    match walk.refuse(shape, json.as_bytes()) {
        Err(Stop::Refused(message)) => Some(message),
        _ => None,
    }
}

/// The error of a value that is decoded alone.
pub(super) fn alone(table: &Table, id: Id, json: &str) -> Option<String> {
    let mut walk = Walk { table, json: json.as_bytes(), at: 0, holder: None, path: Vec::new(), first: None };
    match walk.value(Some(id)) {
        Err(Stop::Refused(message)) => Some(message),
        Ok(()) => walk.first,
        Err(Stop::Malformed) => None,
    }
}

fn fits(text: &str, bits: u32) -> bool {
    if bits == 32 { text.parse::<i32>().is_ok() } else { text.parse::<i64>().is_ok() }
}

fn decodes_itself(shape: &Shape) -> bool {
    matches!(shape, Shape::Quantity | Shape::Time | Shape::MicroTime | Shape::IntOrString)
}

#[cfg(test)]
mod tests {
    use super::type_error;

    #[track_caller]
    fn check(kind: &str, json: &str, expected: Option<&str>) {
        assert_eq!(type_error(kind, json.as_bytes()).as_deref(), expected);
    }

    #[test]
    fn wrong_types_are_told_as_go_tells_them() {
        let pod = "core/v1.Pod";
        let into = "json: cannot unmarshal string into Go struct field ";
        let spec = |text: &str| format!(r#"{{"metadata":{{"name":"a"}},"spec":{text}}}"#);
        check(pod, &spec("\"x\""), Some(&format!("{into}Pod.spec of type v1.PodSpec")));
        let json = spec(r#"{"containers":[{"name":"c","livenessProbe":{"tcpSocket":"x"}}]}"#);
        let field = "Probe.spec.containers.livenessProbe.ProbeHandler.tcpSocket of type v1.TCPSocketAction";
        check(pod, &json, Some(&format!("{into}{field}")));
        let json = spec(r#"{"nodeSelector":{"a":{}},"overhead":"x"}"#);
        let why =
            "json: cannot unmarshal object into Go struct field PodSpec.spec.nodeSelector of type string";
        check(pod, &json, Some(why));
        let json = spec(r#"{"activeDeadlineSeconds":1e3,"x":{"y":[1,{}]}}"#);
        let why = "json: cannot unmarshal number 1e3 into Go struct field \
                   PodSpec.spec.activeDeadlineSeconds of type int64";
        check(pod, &json, Some(why));
        check(pod, &spec(r#"{"containers":null,"dnsPolicy":null,"overhead":{"cpu":1}}"#), None);
    }

    #[test]
    fn schemas_and_what_stands_in_their_place_are_decoded_apart() {
        let crd = "apiextensions/v1.CustomResourceDefinition";
        let of = |schema: &str| {
            format!(r#"{{"spec":{{"versions":[{{"schema":{{"openAPIV3Schema":{schema}}}}}]}}}}"#)
        };
        let expected = Some("boolean or JSON schema expected");
        check(crd, &of(r#"{"additionalProperties":5}"#), expected);
        check(crd, &of(r#"{"not":{"additionalItems":[]}}"#), expected);
        check(crd, &of(r#"{"additionalProperties":false,"items":5,"dependencies":{"a":["b"]}}"#), None);
        let why = "json: cannot unmarshal number into Go struct field JSONSchemaProps.type of type string";
        check(crd, &of(r#"{"items":{"type":5}}"#), Some(why));
        check(crd, &of(r#"{"items":[{},{"type":5}]}"#), Some(why));
    }

    #[test]
    fn types_that_decode_themselves_have_the_last_word() {
        let json = r#"{"spec":{"hostNetwork":"x","overhead":{"cpu":"one"}}}"#;
        let why =
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
        check("core/v1.Pod", json, Some(why));
        let why = "json: cannot unmarshal bool into Go struct field \
                   ServicePort.spec.ports.targetPort of type int32";
        check("core/v1.Service", r#"{"spec":{"ports":[{"targetPort":true}]}}"#, Some(why));
        check("core/v1.Secret", r#"{"data":{"a":"-a"}}"#, Some("illegal base64 data at input byte 0"));
        let why = "json: cannot unmarshal number into Go struct field \
                   ObjectMeta.metadata.creationTimestamp of type string";
        check("core/v1.Secret", r#"{"metadata":{"creationTimestamp":1}}"#, Some(why));
    }
}
