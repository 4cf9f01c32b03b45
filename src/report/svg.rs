//! Drawing with plotters, as SVG that stands in an HTML page: it takes the page's text colour, so
//! it can be read on a light and on a dark ground, and has a name for screen readers.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::{Context, Result};

/// A drawing area of the backend.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Colour that becomes the text colour of the page.
pub(super) const INK: RGBColor = RGBColor(1, 2, 3);
const INK_HEX: &str = "#010203";
/// Colours that stand out on white and on black, and for the colour-blind: after Okabe and Ito.
pub(super) const COLOURS: [RGBColor; 7] = [
    RGBColor(30, 130, 200),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(140, 120, 80),
];
/// Size of texts, in units of the drawing.
pub(super) const TEXT: i32 = 15;

/// Returns the colour of a series.
pub(super) fn colour(series: usize) -> RGBColor {
    COLOURS[series % COLOURS.len()]
}

/// Draws a figure of `size` units; `name` is what a screen reader says in its place.
///
/// # Errors
/// Those of `draw`.
pub(super) fn figure(
    name: &str,
    size: (u32, u32),
    draw: impl FnOnce(&Area) -> std::result::Result<(), Box<dyn std::error::Error>>,
) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&area).map_err(|e| e.to_string()).context("plot")?;
        area.present().map_err(|e| e.to_string()).context("plot")?;
    }
    let name = html_escape::encode_double_quoted_attribute(name);
    let opening = format!("<svg width=\"{}\" height=\"{}\" ", size.0, size.1);
    let accessible = format!("<svg role=\"img\" aria-label=\"{name}\" style=\"max-width:{}px\" ", size.0);
    Ok(svg
        .replacen(&opening, &accessible, 1)
        .replacen(">\n", &format!(">\n<title>{name}</title>\n"), 1)
        .replace(&format!("\"{INK_HEX}\""), "\"currentColor\""))
}

/// Rounds the ends of an axis outwards, so that marks do not touch the frame.
pub(super) fn padded(values: impl Iterator<Item = f64> + Clone) -> Option<std::ops::Range<f64>> {
    let finite = values.filter(|value| value.is_finite());
    let low = finite.clone().min_by(f64::total_cmp)?;
    let high = finite.max_by(f64::total_cmp)?;
    let margin = match high - low {
        width if width > 0.0 => 0.06 * width,
        _ => 0.1 * high.abs().max(0.1),
    };
    Some(low - margin..high + margin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_a_name_and_the_pages_colour() {
        let svg = figure("loss <of> \"a\"", (100, 50), |area| {
            area.draw(&Text::new("a < b & c", (5, 5), ("sans-serif", TEXT).into_font().color(&INK)))?;
            Ok(())
        })
        .unwrap();
        assert!(svg.starts_with("<svg role=\"img\" aria-label=\"loss &lt;of&gt; &quot;a&quot;\""), "{svg}");
        assert!(svg.contains("<title>loss &lt;of&gt; &quot;a&quot;</title>"), "{svg}");
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("fill=\"currentColor\""), "{svg}");
        assert!(!svg.contains("#010203") && !svg.contains(" width=\"100\""), "{svg}");
    }

    #[test]
    fn axes_are_padded() {
        assert_eq!(padded([0.0, f64::NAN, 1.0].into_iter()), Some(-0.06..1.06));
        assert_eq!(padded([2.0].into_iter()), Some(1.8..2.2));
        assert_eq!(padded(std::iter::empty()), None);
    }
}
