//! Keys that begin with a group's name.

use std::ops::Range;

use bytes::Bytes;
use cuemq_storage_api::GroupName;

/// The half-open range of keys that holds all rows of a group, in a table whose keys begin with `group | 0`.
pub(crate) fn keys_of_group(group: &GroupName) -> Range<Bytes> {
    let bound = |last: u8| [group.as_str().as_bytes(), &[last]].concat().into();
    bound(0)..bound(1)
}
