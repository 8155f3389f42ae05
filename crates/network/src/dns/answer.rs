//! From a query's bytes to an answer's bytes.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use super::zone::{Cluster, Reply, Zone, alias};

/// The largest UDP answer: fits every path without fragments.
const MAX_UDP: u16 = 1232;

/// What to do with a query.
pub(super) enum Decision {
    /// Send this.
    Answer(Message),
    /// Ask the node's name servers.
    Forward,
    /// Ask the node's name servers for this name, and put what they say behind the answers.
    Follow(Message, Query),
}

/// The query, if the bytes are one.
pub(super) fn parse(bytes: &[u8]) -> Option<Message> {
    Message::from_vec(bytes).ok().filter(|m| m.metadata.message_type == MessageType::Query)
}

/// An answer to `query` without records.
pub(super) fn response(query: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.queries.clone_from(&query.queries);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP).set_version(0);
        answer.set_edns(edns);
    }
    answer
}

/// Decides about a query.
pub(super) fn decide<C: Cluster>(zone: &Zone<C>, query: &Message, serial: u32) -> Decision {
    if query.metadata.op_code != OpCode::Query {
        return Decision::Answer(response(query, ResponseCode::NotImp));
    }
    if query.edns.as_ref().is_some_and(|e| e.version() > 0) {
        return Decision::Answer(response(query, ResponseCode::BADVERS));
    }
    let [question] = query.queries.as_slice() else {
        return Decision::Answer(response(query, ResponseCode::FormErr));
    };
    if question.query_class() != DNSClass::IN {
        return Decision::Answer(response(query, ResponseCode::Refused));
    }
    let mut answer = response(query, ResponseCode::NoError);
    answer.metadata.authoritative = true;
    match resolve(zone, question.name(), question.query_type(), serial, &mut answer) {
        Resolved::Done => Decision::Answer(answer),
        Resolved::NotOurs => Decision::Forward,
        Resolved::Beyond(target) => {
            let follow = Query::query(target, question.query_type());
            Decision::Follow(answer, follow)
        }
    }
}

enum Resolved {
    Done,
    NotOurs,
    /// The chain of aliases leads out of the cluster.
    Beyond(Name),
}

fn resolve<C: Cluster>(
    zone: &Zone<C>,
    name: &Name,
    kind: RecordType,
    serial: u32,
    answer: &mut Message,
) -> Resolved {
    let mut name = name.clone();
    // Aliases may point at each other.
    for _ in 0..8 {
        match zone.look_up(&name, kind, serial) {
            Reply::Records(mut answers, additionals) => {
                if answers.is_empty() {
                    answer.authorities.extend(zone.soa(serial));
                } else {
                    // Clients that take the first address share the load.
                    let by = usize::from(answer.metadata.id) % answers.len();
                    answers.rotate_left(by);
                }
                answer.answers.append(&mut answers);
                answer.additionals.extend(additionals);
                return Resolved::Done;
            }
            Reply::NoName => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                answer.authorities.extend(zone.soa(serial));
                return Resolved::Done;
            }
            Reply::Alias(target) => {
                answer.answers.push(alias(&name, target.clone()));
                if kind == RecordType::CNAME {
                    return Resolved::Done;
                }
                name = target;
            }
            Reply::NotOurs if answer.answers.is_empty() => return Resolved::NotOurs,
            Reply::NotOurs => return Resolved::Beyond(name),
        }
    }
    answer.metadata.response_code = ResponseCode::ServFail;
    Resolved::Done
}

/// Puts the answers that other name servers gave behind ours.
pub(super) fn append(answer: &mut Message, theirs: Option<&[u8]>) {
    match theirs.and_then(|bytes| Message::from_vec(bytes).ok()) {
        Some(message) => {
            answer.metadata.response_code = message.metadata.response_code;
            answer.answers.extend(message.answers);
            answer.authorities.extend(message.authorities);
        }
        None => answer.metadata.response_code = ResponseCode::ServFail,
    }
}

/// The answer's bytes; for UDP cut to what the client takes, with the mark that makes it ask again by TCP.
pub(super) fn encode(answer: &Message, query: &Message, tcp: bool) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    let limit = query.edns.as_ref().map_or(512, |e| e.max_payload().clamp(512, MAX_UDP));
    if tcp || bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    let mut short = answer.clone();
    short.metadata.truncation = true;
    let none: Vec<Record> = Vec::new();
    (short.answers, short.authorities, short.additionals) = (none.clone(), none.clone(), none);
    short.to_vec().ok()
}
