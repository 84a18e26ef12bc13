//! Names with ranges, as WebDataset writes them: `train-{000000..000099}.tar`, `{train,more}-{0..9}.tar`.

/// So many names are a mistake.
const MAX_NAMES: usize = 1_000_000;

/// The names that `pattern` stands for, in their order; the pattern itself where it has no braces.
pub(super) fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = pattern.split_once('{') else { return Ok(vec![pattern.to_owned()]) };
    let (inside, after) = rest.split_once('}').ok_or("a { without its }")?;
    let middles = match inside.split_once("..") {
        Some((from, to)) => range(from, to).ok_or_else(|| format!("{{{inside}}} is no range of numbers"))?,
        None => inside.split(',').map(str::to_owned).collect(),
    };
    let ends = expand(after)?;
    if middles.len().saturating_mul(ends.len()) > MAX_NAMES {
        return Err(format!("{{{inside}}} makes more than {MAX_NAMES} names"));
    }
    Ok(middles.iter().flat_map(|middle| ends.iter().map(move |end| format!("{before}{middle}{end}"))).collect())
}

/// `000` to `120`, with as many digits as the bounds have.
fn range(from: &str, to: &str) -> Option<Vec<String>> {
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let (first, last) = (number(from)?, number(to)?);
    let padded = from.starts_with('0') || to.starts_with('0');
    let width = if padded { from.len().max(to.len()) } else { 0 };
    let count = last.checked_sub(first)?;
    // One too many is enough for the caller to refuse.
    let last = first.saturating_add(count.min(MAX_NAMES as u64));
    Some((first..=last).map(|number| format!("{number:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges_keep_their_digits_and_lists_their_order() {
        assert_eq!(expand("a/t-{08..11}.tar").unwrap(), ["a/t-08.tar", "a/t-09.tar", "a/t-10.tar", "a/t-11.tar"]);
        assert_eq!(expand("{b,a}{9..10}").unwrap(), ["b9", "b10", "a9", "a10"]);
        assert_eq!(expand("plain.tar").unwrap(), ["plain.tar"]);
        assert_eq!(expand("{000..000}").unwrap(), ["000"]);
    }

    #[test]
    fn what_is_no_range_is_refused_and_a_huge_one_too() {
        for bad in ["{1..", "{a..b}", "{5..1}", "{-1..3}", "{0..99999999999}", "{1..18446744073709551615}"] {
            assert!(expand(bad).is_err(), "{bad}");
        }
        assert!(expand("{0..9999}{0..9999}").unwrap_err().ends_with("more than 1000000 names"));
    }
}
