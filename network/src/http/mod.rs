//! HTTP as a guest speaks it: every request judged alone, and sent on.
//!
//! * [`Editor`] – who may change requests and responses.

mod editor;

pub use self::editor::{
    BodyEdit, Editor, Later, Plain, Refused, RequestContext, RequestEdit, ResponseEdit, State,
    Transform,
};
