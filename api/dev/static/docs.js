"use strict";

async function begin() {
  const config = await (await fetch("/v1/config")).json();
  const allowed = config.settings.find((one) => one.name === "ENOKI_DEV_HTTP_ALLOW")?.value ?? [];
  SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    validatorUrl: null, // it would send the document to a server elsewhere
    tryItOutEnabled: true,
    defaultModelsExpandDepth: 0,
    supportedSubmitMethods: allowed.includes("writes") ? ["get", "put", "post"] : ["get"],
  });
}

begin();
