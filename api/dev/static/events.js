// Pure: what an event of /v1/events says, in one sentence.

const whose = (fields) => (fields.pod ? `${fields.namespace}/${fields.pod}` : "");

const sentences = {
  address: (f) => {
    if (f.after === "held") return `${whose(f) || f.container_id || "a pod"} got ${f.address}`;
    if (f.before === "held") return `${whose(f) || "a pod"} gave back ${f.address}`;
    if (f.after === "unknown" || f.after === "gone") return `${f.address} went back to EC2`;
    return `${f.address} is ${f.after}`;
  },
  eni: (f) => `${f.eni}: ${f.change}`,
  pool_degraded: (f) => `${f.cause}: ${f.message}`,
  pool_recovered: (f) => `works again: ${f.scope} (${f.cause})`,
  kubernetes_failed: (f) => `${f.cause}: ${f.message}`,
  kubernetes_recovered: (f) => `Kubernetes answers again (${f.cause})`,
  finding: (f) => `${f.finding}: ${f.message}`,
  repair: (f) => `repaired ${f.object}: ${f.reason}`,
  cni_failed: (f) => `${f.verb} of ${whose(f) || f.container_id} failed: ${f.message || f.cause}`,
};

export const kinds = Object.keys(sentences);
const bad = new Set(["pool_degraded", "kubernetes_failed", "finding", "cni_failed"]);

/** {text, bad, group}: events of one group that follow one another are shown as one. */
export function told(event) {
  const fields = event.fields;
  const sentence = sentences[event.kind];
  const group = event.kind === "address" && !fields.pod ? `${fields.eni} ${fields.before} ${fields.after}` : "";
  return { text: sentence ? sentence(fields) : event.kind, bad: bad.has(event.kind), group };
}

/** The sentence of several events of one group. */
export function toldTogether(events) {
  const { after, before } = events[0].fields;
  const what = after === "unknown" || after === "gone" ? "went back to EC2" : `are ${after}`;
  return `${events.length} addresses ${what}${before === "unknown" ? ", new from EC2" : ""}`;
}

/** The events of a stream that has ended, as text (WHATWG HTML, section 9.2). */
export function parsed(text) {
  return text
    .split("\n\n")
    .map((block) => block.split("\n").find((line) => line.startsWith("data: {\"id\"")))
    .filter(Boolean)
    .map((line) => JSON.parse(line.slice("data: ".length)));
}
