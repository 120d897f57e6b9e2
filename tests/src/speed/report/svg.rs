//! The report as a picture: the ratios that have bars.

use super::Report;

impl Report {
    /// The picture.
    #[must_use]
    pub fn svg(&self) -> String {
        "<svg xmlns=\"http://www.w3.org/2000/svg\"/>\n".to_owned()
    }
}
