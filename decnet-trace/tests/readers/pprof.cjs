// Prints the samples of a pprof file, as Datadog's decoder reads them.
"use strict";
const fs = require("node:fs");
const zlib = require("node:zlib");
const { Profile } = require("pprof-format");

const profile = Profile.decode(zlib.gunzipSync(fs.readFileSync(process.argv[2])));
const string = (id) => profile.stringTable.strings[Number(id)];
const by = (items) => new Map(items.map((item) => [Number(item.id), item]));
const [locations, functions, mappings] =
  [profile.location, profile.function, profile.mapping].map(by);
const types = profile.sampleType.map((type) => `${string(type.type)}/${string(type.unit)}`);
console.log(`${types.join(" ")} period ${profile.period} default ${string(profile.defaultSampleType)}`);
for (const sample of profile.sample) {
  const labels = sample.label.map((label) =>
    `${string(label.key)}=${Number(label.str) ? string(label.str) : label.num}`);
  const frames = sample.locationId.map((id) => {
    const location = locations.get(Number(id));
    const { functionId, line } = location.line[0];
    const { name, filename, startLine } = functions.get(Number(functionId));
    const mapping = string(mappings.get(Number(location.mappingId)).filename);
    return `${string(name)} ${string(filename)}:${startLine}:${line} ${mapping}`;
  });
  console.log(`${sample.value.join(" ")} ${labels.join(" ")}: ${frames.join(", ")}`);
}
