//! Pages of stores that hand out one owned value per message.

use crate::Result;
use crate::store::Page;

/// Bodies in order, from a message on.
pub(crate) struct Rows<B> {
    pub(crate) first: u64,
    pub(crate) bodies: Vec<B>,
}

impl<B: AsRef<[u8]>> Page for Rows<B> {
    fn visit(&self, see: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        (self.first..).zip(&self.bodies).try_for_each(|(number, body)| see(number, body.as_ref()))
    }
}
