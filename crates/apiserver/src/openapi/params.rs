//! The parameters of the generic verbs.

/// A query or path parameter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Param {
    pub(super) name: &'static str,
    pub(super) place: &'static str,
    pub(super) kind: &'static str,
    pub(super) description: &'static str,
}

const fn query(name: &'static str, kind: &'static str, description: &'static str) -> Param {
    Param { name, place: "query", kind, description }
}

pub(super) const PRETTY: Param = query(
    "pretty",
    "string",
    "If 'true', the output is indented. Defaults to 'false' unless the user agent is a browser or a \
        command-line \
     HTTP tool (curl, wget).",
);
const DRY_RUN: Param = query(
    "dryRun",
    "string",
    "Runs every stage of the request but the storing. The only valid value is All.",
);
const FIELD_MANAGER: Param = query(
    "fieldManager",
    "string",
    "Name of the actor making the change, at most 128 printable characters. Required for apply patches.",
);
const FIELD_VALIDATION: Param = query(
    "fieldValidation",
    "string",
    "What to do about unknown or duplicate fields: Ignore drops them, Warn (the default) also sends a \
        warning, \
     Strict refuses the request.",
);
const FORCE: Param =
    query("force", "boolean", "Takes over fields that other managers own. Only for apply patches.");
const GRACE: Param = query(
    "gracePeriodSeconds",
    "integer",
    "Seconds before the object is removed; 0 removes it at once. Defaults to the type's own period.",
);
const IGNORE_READ_ERRORS: Param = query(
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "boolean",
    "Deletes an object that cannot be read from the store, without finalizers or preconditions.",
);
const ORPHAN: Param = query("orphanDependents", "boolean", "Deprecated: use propagationPolicy.");
const PROPAGATION: Param =
    query("propagationPolicy", "string", "How dependents are collected: Orphan, Background or Foreground.");
const BOOKMARKS: Param =
    query("allowWatchBookmarks", "boolean", "Asks for events of type BOOKMARK in a watch.");
const CONTINUE: Param = query("continue", "string", "Token of the previous part of a chunked list.");
const FIELD_SELECTOR: Param = query("fieldSelector", "string", "Restricts the objects by their fields.");
const LABEL_SELECTOR: Param = query("labelSelector", "string", "Restricts the objects by their labels.");
const LIMIT: Param = query("limit", "integer", "Most objects in one part of a list.");
pub(super) const RESOURCE_VERSION: Param =
    query("resourceVersion", "string", "The revision the answer must at least reflect, or begin at.");
const RESOURCE_VERSION_MATCH: Param =
    query("resourceVersionMatch", "string", "How resourceVersion binds a list: Exact or NotOlderThan.");
const SEND_INITIAL: Param = query(
    "sendInitialEvents",
    "boolean",
    "Begins a watch with one event per present object, followed by a bookmark.",
);
const SHARD: Param = query("shardSelector", "string", "Restricts the objects to a shard.");
const TIMEOUT: Param = query("timeoutSeconds", "integer", "Ends a list or watch after this many seconds.");
const WATCH: Param = query("watch", "boolean", "Streams changes instead of a list.");
pub(super) const PATH: Param = query("path", "string", "The URL path to proxy to.");

/// The object's name in the path.
pub(super) const NAME: Param =
    Param { name: "name", place: "path", kind: "string", description: "name of the object" };
/// The namespace in the path.
pub(super) const NAMESPACE: Param =
    Param { name: "namespace", place: "path", kind: "string", description: "namespace of the object" };
/// The rest of a proxied path.
pub(super) const REST: Param =
    Param { name: "path", place: "path", kind: "string", description: "path below the proxied endpoint" };

/// list and watch.
pub(super) const LIST: &[Param] = &[
    BOOKMARKS,
    CONTINUE,
    FIELD_SELECTOR,
    LABEL_SELECTOR,
    LIMIT,
    RESOURCE_VERSION,
    RESOURCE_VERSION_MATCH,
    SEND_INITIAL,
    SHARD,
    TIMEOUT,
    WATCH,
];
/// create and update.
pub(super) const WRITE: &[Param] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
/// patch.
pub(super) const PATCH: &[Param] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
/// delete.
pub(super) const DELETE: &[Param] = &[DRY_RUN, GRACE, IGNORE_READ_ERRORS, ORPHAN, PROPAGATION];
/// deletecollection.
pub(super) const DELETE_COLLECTION: &[Param] = &[
    CONTINUE,
    DRY_RUN,
    FIELD_SELECTOR,
    GRACE,
    IGNORE_READ_ERRORS,
    LABEL_SELECTOR,
    LIMIT,
    ORPHAN,
    PROPAGATION,
    RESOURCE_VERSION,
    RESOURCE_VERSION_MATCH,
    SEND_INITIAL,
    SHARD,
    TIMEOUT,
];
/// get of custom resources.
pub(super) const READ: &[Param] = &[RESOURCE_VERSION];
/// pods/log.
pub(super) const LOG: &[Param] = &[
    query("container", "string", "The container whose log to stream; defaults to the only one."),
    query("follow", "boolean", "Keeps streaming."),
    query("insecureSkipTLSVerifyBackend", "boolean", "Does not verify the kubelet's certificate."),
    query("limitBytes", "integer", "Ends the log after this many bytes."),
    query("previous", "boolean", "The log of the previous, terminated container."),
    query("sinceSeconds", "integer", "Only lines younger than this."),
    query("stream", "string", "All, Stdout or Stderr."),
    query("tailLines", "integer", "Only this many lines from the end."),
    query("timestamps", "boolean", "Begins each line with its time."),
];
/// pods/exec.
pub(super) const EXEC: &[Param] = &[
    query("command", "string", "The program and its arguments, not run in a shell."),
    query("container", "string", "The container to run in; defaults to the only one."),
    query("stderr", "boolean", "Redirects the standard error stream."),
    query("stdin", "boolean", "Redirects the standard input stream."),
    query("stdout", "boolean", "Redirects the standard output stream."),
    query("tty", "boolean", "Allocates a terminal."),
];
/// pods/attach.
pub(super) const ATTACH: &[Param] = &[
    query("container", "string", "The container to attach to; defaults to the only one."),
    query("stderr", "boolean", "Redirects the standard error stream."),
    query("stdin", "boolean", "Redirects the standard input stream."),
    query("stdout", "boolean", "Redirects the standard output stream."),
    query("tty", "boolean", "The container has a terminal."),
];
/// pods/portforward.
pub(super) const PORT_FORWARD: &[Param] =
    &[query("ports", "integer", "The ports to forward; required over WebSocket.")];
