"""One static HTML page: what was cut where, and what it cost. No network, no scripts."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment

from niwaki.results import Result

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Niwaki report</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.bar{background:#ddd;width:16rem;height:.9rem}
.bar div{background:#3a7d44;height:100%}.warn{color:#8a3b00}
</style></head><body><h1>Niwaki report</h1>
{% for r in results %}<section><h2>{{ r.recipe.model }}</h2>
<p>Trained on {{ r.data.train.path }} ({{ r.data.train.rows }} rows), measured on {{ r.data.eval.path }}
({{ r.data.eval.rows }} rows); {{ r.run.threads }} threads on {{ r.run.device }}, seed {{ r.run.seed }},
{{ "%.0f"|format(r.run.seconds) }} s.</p>
<table><tr><th>stage</th><th>budget</th><th>asked</th><th>delivered</th><th>seconds</th></tr>
{% for s in r.stages %}<tr><td>{{ s.name }}</td><td>{{ s.budget.kind }}</td>
<td>{{ "%.4f"|format(s.budget.requested) }}</td><td>{{ "%.4f"|format(s.budget.achieved) }}</td>
<td>{{ "%.1f"|format(s.seconds) }}</td></tr>{% endfor %}</table>
<table><tr><th></th><th>dense</th><th>pruned</th><th>ratio</th></tr>
{% for name, value in r.pruned.quality.items() %}<tr><td>{{ name }}</td>
<td>{{ "%.4f"|format(r.dense.quality[name]) }}</td><td>{{ "%.4f"|format(value) }}</td><td></td></tr>{% endfor %}
{% for key, label in figures %}<tr><td>{{ label }}</td><td>{{ "{:,.0f}".format(r.dense[key]) }}</td>
<td>{{ "{:,.0f}".format(r.pruned[key]) }}</td>
<td>{% if r.dense[key] %}{{ "%.3f"|format(r.pruned[key] / r.dense[key]) }}{% endif %}</td></tr>{% endfor %}</table>
<table><tr><th>latency, {{ r.latency.seq_len }} tokens</th><th>dense ms</th><th>pruned ms</th><th>speed-up</th></tr>
{% for key, t in r.latency.items() if key.startswith("batch_") %}<tr><td>{{ key|replace("_", " ") }}</td>
<td>{{ "%.2f"|format(t.dense_ms) }}</td><td>{{ "%.2f"|format(t.pruned_ms) }}</td>
<td>{{ "%.2f"|format(t.speedup) }}x</td></tr>{% endfor %}</table>
<table><tr><th>part</th><th>kept</th><th>of</th><th>importance</th><th></th></tr>
{% for l in r.layers %}<tr><td>{{ l.name }}</td><td>{{ l.kept }}</td><td>{{ l.total }}</td>
<td>{{ "%.3f"|format(l.importance) }}</td>
<td><div class="bar"><div style="width:{{ "%.1f"|format(100 * l.kept / l.total) }}%"></div></div></td></tr>
{% endfor %}</table>
{% for w in r.warnings %}<p class="warn">{{ w }}</p>{% endfor %}</section>{% endfor %}</body></html>
"""
_FIGURES = (
    ("params", "parameters in blocks"),
    ("flops", "FLOPs in blocks"),
    ("embedding_params", "parameters in embeddings"),
    ("head_params", "parameters in task head"),
    ("size_bytes", "bytes"),
)


def render(results: Sequence[Result]) -> str:
    """The page for one or more results; all text in them is escaped."""
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(results=results, figures=[f for f in _FIGURES if all(f[0] in r.dense for r in results)])
