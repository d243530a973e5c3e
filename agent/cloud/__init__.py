"""EC2 and the instance metadata service, as this instance uses them.

`ec2.Ec2Cloud` and `imds.ImdsMetadata` implement what `agent.ports.cloud` asks. This is the only home of aiobotocore,
and of aiohttp, which aiobotocore brings.
"""
