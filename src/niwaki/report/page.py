"""One static HTML page: what was cut where, and what it cost. All text is escaped; no script, no network."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment

from niwaki.report.course import course_table
from niwaki.report.engine import engine_rows
from niwaki.report.figures import counted, provenance, ratio, shown
from niwaki.report.stages import stage_lines
from niwaki.results import Result

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Niwaki report</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #e8ece6; border-radius: 3px; width: 16rem; height: .9rem }
.bar div { background: #4b7a47; border-radius: 3px; height: 100% }
</style>
<h1>Niwaki report</h1>
{% for r in results %}
<h2>{{ r.recipe.model }}</h2>
{% for line in stage_lines(r.stages) %}<p>{{ line }}.</p>{% endfor %}
<table><tr><th></th><th class="n">dense</th><th class="n">pruned</th><th class="n">change</th></tr>
{% for name, value in r.dense.quality.items() %}<tr><td>{{ name }}</td><td class="n">{{ shown(r.dense, name) }}</td>
<td class="n">{{ shown(r.pruned, name) }}</td>
<td class="n">{{ "%+.4f" | format(r.pruned.quality[name] - value) }}</td></tr>{% endfor %}
{% for name, value in r.fidelity.items() %}<tr><td>{{ name }} to dense</td><td></td>
<td class="n">{{ "%.4f" | format(value) }}</td><td></td></tr>{% endfor %}
{% for name in counted(r) %}<tr><td>{{ name }}</td>
<td class="n">{{ "{:,.0f}".format(r.dense[name]) }}</td><td class="n">{{ "{:,.0f}".format(r.pruned[name]) }}</td>
<td class="n">{{ ratio(r.pruned[name], r.dense[name]) }}</td></tr>{% endfor %}
</table>
{% for row in course_table(r) %}{% if loop.first %}<p>Stage by stage; dense is the model before the first stage that
removes something.</p>
<table><tr>{% for cell in row %}<th class="{{ "n" if not loop.first }}">{{ cell }}</th>{% endfor %}</tr>
{% else %}<tr>{% for cell in row %}<td class="{{ "n" if not loop.first }}">{{ cell }}</td>{% endfor %}</tr>
{% endif %}{% if loop.last %}</table>{% endif %}{% endfor %}
<p>params and flops count the transformer blocks; embeddings
({{ "{:,}".format(r.pruned.embedding_params) }}) and the task head ({{ "{:,}".format(r.pruned.head_params) }})
are not in them.</p>
<table><tr><th>measured latency</th>
<th class="n">dense ms</th><th class="n">pruned ms</th><th class="n">speed-up</th></tr>
{% for name, t in r.latency.items() if t is mapping %}<tr><td>{{ name }}, length {{ r.latency.seq_len }}</td>
<td class="n">{{ "%.1f" | format(t.dense_ms) }}</td><td class="n">{{ "%.1f" | format(t.pruned_ms) }}</td>
<td class="n">{{ "%.2f" | format(t.speedup) }}x</td></tr>{% endfor %}
</table>
{% for row in engine_rows(r) %}{% if loop.first %}<p>In {{ r.engine.split()[0] }}, all timed in turn.</p>
<table><tr>{% for cell in row %}<th class="{{ "n" if not loop.first }}">{{ cell }}</th>{% endfor %}</tr>
{% else %}<tr>{% for cell in row %}<td class="{{ "n" if not loop.first }}">{{ cell }}</td>{% endfor %}</tr>
{% endif %}{% if loop.last %}</table>{% endif %}{% endfor %}
{% if r.layers %}<table><tr><th>site</th><th>kept</th><th class="n">of</th><th class="n">importance</th></tr>
{% for l in r.layers %}<tr><td>{{ l.name }}</td>
<td><div class="bar"><div style="width: {{ "%.1f" | format(100 * (1 - l.ratio)) }}%"></div></div></td>
<td class="n">{{ l.kept }} / {{ l.total }}</td><td class="n">{{ "%.3f" | format(l.importance) }}</td></tr>{% endfor %}
</table>{% endif %}
<p>{{ provenance(r) }}</p>
{% for w in r.warnings %}<p>Warning: {{ w }}</p>{% endfor %}
{% endfor %}
</html>
"""


def is_page(path: Path) -> bool:
    """Whether a file is a page that Niwaki wrote."""
    start = _PAGE.split("<style>")[0].encode()
    with path.open("rb") as file:
        return file.read(len(start)) == start


def page(results: list[Result]) -> str:
    """The page for one or several results, one below the other."""
    said = (provenance, counted, ratio, shown, stage_lines, course_table, engine_rows)
    names = {function.__name__: function for function in said}
    return Environment(autoescape=True).from_string(_PAGE).render(results=results, **names)
