// Shows an OpenAPI or AsyncAPI document. Text only: nothing of the document is ever read as markup.
"use strict";

const root = document.getElementById("document");

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

// Prose with `code` in it.
function prose(text) {
  const parts = (text ?? "").split("`");
  return element("p", "", ...parts.map((part, place) => (place % 2 ? element("code", part) : part)));
}

function foldable(title, kind, about, ...children) {
  const summary = element("summary", "", ...(kind ? [element("b", kind)] : []), element("code", title));
  if (about) summary.append(element("span", about));
  return element("details", "", summary, ...children);
}

function table(heads, rows) {
  const made = element("table", "", element("tr", "", ...heads.map((head) => element("th", head))));
  for (const row of rows) made.append(element("tr", "", ...row.map((cell) => element("td", String(cell ?? "")))));
  return made;
}

function json(value) {
  return element("pre", JSON.stringify(value, null, 2));
}

function nameOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(nameOf).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return `[${nameOf(schema.items)}]`;
  return schema.type ?? "";
}

function schemas(all) {
  return Object.entries(all).map(([name, schema]) => {
    const required = new Set(schema.required ?? []);
    const rows = Object.entries(schema.properties ?? {}).map(([field, type]) => [
      field,
      nameOf(type),
      required.has(field) ? "required" : "",
    ]);
    const fields = rows.length ? [table(["field", "type", ""], rows)] : [];
    return foldable(name, "", "", prose(schema.description), ...fields, json(schema));
  });
}

function operation(method, path, described) {
  const parameters = (described.parameters ?? []).map((one) => [
    one.name,
    one.in,
    nameOf(one.schema),
    one.required ? "required" : "",
    one.description,
  ]);
  const body = Object.entries(described.requestBody?.content ?? {});
  const answers = Object.entries(described.responses).map(([status, answer]) => [
    status,
    nameOf(Object.values(answer.content ?? {})[0]?.schema),
    answer.description,
  ]);
  return foldable(
    path,
    method.toUpperCase(),
    described.summary,
    prose(described.description),
    ...(parameters.length ? [table(["parameter", "in", "type", "", ""], parameters)] : []),
    ...body.map(([media, content]) => element("p", `Body: ${nameOf(content.schema)} (${media})`)),
    table(["status", "body", ""], answers),
  );
}

function showOpenApi(described) {
  const operations = Object.entries(described.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, one]) => operation(method, path, one)),
  );
  return [element("h2", "Operations"), ...operations];
}

function showAsyncApi(described) {
  const shown = (wanted) =>
    Object.values(described.operations)
      .filter((one) => one.action === wanted)
      .flatMap((one) => one.messages)
      .map((one) => described.components.messages[one.$ref.split("/messages/")[1]])
      .map((message) =>
        foldable(message.name, "", "", prose(message.summary), prose(`Fields: \`${nameOf(message.payload)}\` below.`)),
      );
  return [
    element("h2", "Client to server"),
    ...shown("receive"),
    element("h2", "Server to client"),
    ...shown("send"),
    element("h2", "Error codes"),
    table(["code", "status", "try again", ""], described["x-error-codes"].map((one) => [one.code, one.http_status, one.retryable ? "yes" : "no", one.meaning])),
    element("h2", "Close codes"),
    table(["code", "reconnect", ""], described["x-close-codes"].map((one) => [one.code, one.reconnect ? "yes" : "no", one.reason])),
  ];
}

async function show() {
  const described = await (await fetch(root.dataset.source)).json();
  const about = (described.info.description ?? "").split("\n\n").map(prose);
  const parts = described.asyncapi ? showAsyncApi(described) : showOpenApi(described);
  root.replaceChildren(...about, ...parts, element("h2", "Objects"), ...schemas(described.components.schemas));
}

show().catch((error) => {
  root.textContent = `The document could not be read: ${error}`;
});
